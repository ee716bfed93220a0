"""The layouts that the guest module shares with the daemon.

Each class mirrors the struct of the same name in guest/module/optpoline_abi.h, field by field, and
``STRUCTS`` names them; tests compare them with the DWARF of what the C compiler makes of that file.
The meaning of the fields stands there.
"""

import ctypes
from enum import IntEnum

__all__ = (
    "ABI_VERSION",
    "INLINE_BRANCH",
    "MAGIC",
    "MODULE_NAME_LEN",
    "NR_REGS",
    "POKE_HASH",
    "RECORDS_PER_CHUNK",
    "RECORD_SLOTS",
    "STATIC_KINDS",
    "STRUCTS",
    "THUNK_HEAD",
    "CensusSlot",
    "CounterRecord",
    "CpuStats",
    "HeaderLayout",
    "ModuleLayout",
    "PokeEntryLayout",
    "PokeState",
    "RequestOp",
    "SiteKind",
    "Slot",
    "offset_of",
)

MAGIC = b"optpoline-header"
ABI_VERSION = 4

NR_REGS = 16
RECORD_SLOTS = 7
RECORDS_PER_CHUNK = 512
MODULE_NAME_LEN = 56
THUNK_HEAD = 5
"""Bytes of the first instruction of a thunk."""
POKE_HASH = 0x9E3779B97F4A7C15
INLINE_BRANCH = 9
"""Bytes from the compare of an inline site to its branch."""


class SiteKind(IntEnum):
    """``enum optp_site_kind``: what an int3 at a site means."""

    CALL = 1
    JMP = 2
    COMPARE = 3
    BRANCH = 4
    STATIC_CALL = 5
    STATIC_JMP = 6


STATIC_KINDS = frozenset({SiteKind.STATIC_CALL, SiteKind.STATIC_JMP})


class PokeState(IntEnum):
    """``enum optp_poke_state``."""

    IDLE = 0
    ARMED = 1
    GONE = 2


class RequestOp(IntEnum):
    """``enum optp_request``."""

    GRACE = 1
    SYNC = 2
    MODULES = 3
    HOLD = 4
    RELEASE = 5
    CENSUS_CLEAR = 6


class Slot(ctypes.LittleEndianStructure):
    """``struct optp_slot``: the low half of a target, and its calls."""

    _fields_ = (
        ("target", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
    )


class CounterRecord(ctypes.LittleEndianStructure):
    """``struct optp_record``: what one CPU saw at one site."""

    _fields_ = (
        ("slots", Slot * RECORD_SLOTS),
        ("other", ctypes.c_uint32),
        ("hits", ctypes.c_uint32),
    )


class PokeEntryLayout(ctypes.LittleEndianStructure):
    """``struct optp_poke_entry``: a site that was ever patched."""

    _fields_ = (
        ("site", ctypes.c_uint64),
        ("slow_path", ctypes.c_uint64),
        ("kind", ctypes.c_uint8),
        ("state", ctypes.c_uint8),
        ("length", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8 * 5),
        ("original", ctypes.c_uint8 * 8),
    )


class CpuStats(ctypes.LittleEndianStructure):
    """``struct optp_cpu_stats``: the int3s that one CPU met."""

    _fields_ = (
        ("int3_hits", ctypes.c_uint64),
        ("int3_late", ctypes.c_uint64),
    )


class CensusSlot(ctypes.LittleEndianStructure):
    """``struct optp_census_slot``: how often one pair was called in a census."""

    _fields_ = (("key", ctypes.c_uint64), ("count", ctypes.c_uint64))


class ModuleLayout(ctypes.LittleEndianStructure):
    """``struct optp_module``: a loaded module."""

    _fields_ = (
        ("name", ctypes.c_uint8 * MODULE_NAME_LEN),
        ("text", ctypes.c_uint64),
        ("text_size", ctypes.c_uint64),
        ("symtab", ctypes.c_uint64),
        ("strtab", ctypes.c_uint64),
        ("nr_symbols", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class HeaderLayout(ctypes.LittleEndianStructure):
    """``struct optp_header``: where everything else is."""

    _fields_ = (
        ("magic", ctypes.c_uint8 * len(MAGIC)),
        ("abi_version", ctypes.c_uint32),
        ("header_size", ctypes.c_uint32),
        ("self", ctypes.c_uint64),
        ("boot_nonce", ctypes.c_uint64),
        ("vmcoreinfo_paddr", ctypes.c_uint64),
        ("vmcoreinfo_size", ctypes.c_uint64),
        ("module_text", ctypes.c_uint64),
        ("module_text_size", ctypes.c_uint64),
        ("arena", ctypes.c_uint64),
        ("arena_size", ctypes.c_uint64),
        ("poke_table", ctypes.c_uint64),
        ("poke_order", ctypes.c_uint32),
        ("poke_entry_size", ctypes.c_uint32),
        ("per_cpu_offset", ctypes.c_uint64),
        ("nr_cpu_ids", ctypes.c_uint32),
        ("nr_record_chunks", ctypes.c_uint32),
        ("record_chunks", ctypes.c_uint64),
        ("records_per_chunk", ctypes.c_uint32),
        ("record_size", ctypes.c_uint32),
        ("cpu_stats", ctypes.c_uint64),
        ("thunk", ctypes.c_uint64 * NR_REGS),
        ("learn_stub", ctypes.c_uint64 * NR_REGS),
        ("census_stub", ctypes.c_uint64 * NR_REGS),
        ("thunk_head", ctypes.c_uint8 * 8 * NR_REGS),
        ("census_chunks", ctypes.c_uint64),
        ("census_other", ctypes.c_uint64),
        ("nr_census_chunks", ctypes.c_uint32),
        ("census_chunk_slots", ctypes.c_uint32),
        ("modules", ctypes.c_uint64),
        ("modules_capacity", ctypes.c_uint32),
        ("modules_count", ctypes.c_uint32),
        ("modules_generation", ctypes.c_uint32),
        ("held", ctypes.c_uint32),
        ("request_op", ctypes.c_uint32),
        ("request_seq", ctypes.c_uint32),
        ("request_result", ctypes.c_int32),
        ("request_done_seq", ctypes.c_uint32),
    )


STRUCTS: dict[str, type[ctypes.LittleEndianStructure]] = {
    "optp_slot": Slot,
    "optp_record": CounterRecord,
    "optp_census_slot": CensusSlot,
    "optp_poke_entry": PokeEntryLayout,
    "optp_cpu_stats": CpuStats,
    "optp_module": ModuleLayout,
    "optp_header": HeaderLayout,
}


def offset_of(struct: type[ctypes.LittleEndianStructure], field: str) -> int:
    """Bytes from the start of ``struct`` to ``field``."""
    offset: int = getattr(struct, field).offset
    return offset


assert ctypes.sizeof(CounterRecord) == 64
assert ctypes.sizeof(PokeEntryLayout) == 32
assert ctypes.sizeof(ModuleLayout) == 96
assert ctypes.sizeof(HeaderLayout) == 720
