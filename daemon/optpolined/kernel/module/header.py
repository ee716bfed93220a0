"""The module's header: every field checked before anything follows it."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.kernel.errors import (
    AbiMismatchError,
    HeaderError,
    ModuleGoneError,
    TranslationError,
)
from optpolined.kernel.module import abi
from optpolined.kernel.paging import ADDRESS_MASK, PAGE_SIZE, AddressSpace
from optpolined.kernel.vmcoreinfo import NOTE_SIZE_MAX
from optpolined.x86 import THUNK_REGISTERS, Register

__all__ = ("HEADER_SIZE", "Header", "HeaderStatus", "parse_header", "read_header", "read_status")

HEADER_SIZE: Final = ctypes.sizeof(abi.HeaderLayout)

_TOP = 1 << 64
_KERNEL = (0xFF00_0000_0000_0000, _TOP)  # the upper half with 5 levels; 4 levels have less of it
_TEXT = (_TOP - (2 << 30), _TOP)  # what a rel32 and a sign-extended imm32 reach

_ARENA_SIZE = (4 << 10, 256 << 20)
_TEXT_SIZE = (_ARENA_SIZE[0], 2 * _ARENA_SIZE[1])
_POKE_ORDER = (8, 17)
_CPU_IDS = (1, 8192)  # the most that x86 allows (CONFIG_NR_CPUS)
_RECORD_CHUNKS = (1, 128)
_MODULES = (1, 65536)
_CENSUS_CHUNKS = (1, 64)
_CENSUS_SLOTS = (1, 2048)  # of 16 bytes: 32 KiB, the largest percpu allocation
_ARENA_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class Header:
    """``struct optp_header``, without what changes after it was published.

    Sizes are in bytes.  ``cpu_stats`` and ``census_other`` are percpu offsets: see optpoline_abi.h.
    """

    address: GuestVirtual
    boot_nonce: int
    vmcoreinfo: GuestPhysical
    vmcoreinfo_size: int
    module_text: GuestVirtual
    module_text_size: int
    arena: GuestVirtual
    arena_size: int
    poke_table: GuestVirtual
    poke_order: int
    per_cpu_offset: GuestVirtual
    nr_cpu_ids: int
    record_chunks: GuestVirtual
    nr_record_chunks: int
    cpu_stats: int
    thunk: Mapping[Register, GuestVirtual]
    learn_stub: Mapping[Register, GuestVirtual]
    census_stub: Mapping[Register, GuestVirtual]
    thunk_head: Mapping[Register, bytes]
    census_chunks: GuestVirtual
    nr_census_chunks: int
    census_chunk_slots: int
    census_other: int
    modules: GuestVirtual
    modules_capacity: int

    def field(self, name: str) -> GuestVirtual:
        """Return the address of a field of ``struct optp_header`` in the guest."""
        return GuestVirtual(self.address + abi.offset_of(abi.HeaderLayout, name))


@dataclass(frozen=True, slots=True)
class HeaderStatus:
    """The fields of ``struct optp_header`` that change while the module is loaded."""

    modules_count: int
    modules_generation: int
    held: bool
    request_op: int
    request_seq: int
    request_result: int
    request_done_seq: int


def read_header(space: AddressSpace, address: GuestVirtual) -> Header:
    """Read and check the header at ``address``.

    :raise AbiMismatchError: it is of another version.
    :raise HeaderError: a field makes no sense.
    :raise TranslationError: it is not mapped any more.
    """
    return parse_header(space.read(address, HEADER_SIZE), address)


def parse_header(data: bytes, address: GuestVirtual) -> Header:
    """Check the ``HEADER_SIZE`` bytes that stand at ``address``.

    The magic, the version, the size and ``self`` stand at the same place in every version.

    :raise AbiMismatchError: they are of another version.
    :raise HeaderError: a field makes no sense.
    """
    raw = abi.HeaderLayout.from_buffer_copy(data)
    if bytes(raw.magic) != abi.MAGIC:
        raise HeaderError("magic", bytes(raw.magic), repr(abi.MAGIC))
    _equal("self", raw.self, address)
    if raw.abi_version != abi.ABI_VERSION:
        raise AbiMismatchError(raw.abi_version, abi.ABI_VERSION)
    _equal("header_size", raw.header_size, HEADER_SIZE)
    _equal("poke_entry_size", raw.poke_entry_size, ctypes.sizeof(abi.PokeEntryLayout))
    _equal("record_size", raw.record_size, ctypes.sizeof(abi.CounterRecord))
    _equal("records_per_chunk", raw.records_per_chunk, abi.RECORDS_PER_CHUNK)
    _between("vmcoreinfo_size", raw.vmcoreinfo_size, (1, NOTE_SIZE_MAX))
    if raw.vmcoreinfo_paddr & ~(ADDRESS_MASK | (PAGE_SIZE - 1)):
        raise HeaderError("vmcoreinfo_paddr", raw.vmcoreinfo_paddr, "a physical address")
    _check_text(raw)
    _check_tables(raw)
    return Header(
        address=address,
        boot_nonce=raw.boot_nonce,
        vmcoreinfo=GuestPhysical(raw.vmcoreinfo_paddr),
        vmcoreinfo_size=raw.vmcoreinfo_size,
        module_text=GuestVirtual(raw.module_text),
        module_text_size=raw.module_text_size,
        arena=GuestVirtual(raw.arena),
        arena_size=raw.arena_size,
        poke_table=GuestVirtual(raw.poke_table),
        poke_order=raw.poke_order,
        per_cpu_offset=GuestVirtual(raw.per_cpu_offset),
        nr_cpu_ids=raw.nr_cpu_ids,
        record_chunks=GuestVirtual(raw.record_chunks),
        nr_record_chunks=raw.nr_record_chunks,
        cpu_stats=raw.cpu_stats,
        thunk=_by_register(list(raw.thunk)),
        learn_stub=_by_register(list(raw.learn_stub)),
        census_stub=_by_register(list(raw.census_stub)),
        thunk_head=MappingProxyType(
            {
                register: bytes(raw.thunk_head[register])[: abi.THUNK_HEAD]
                for register in THUNK_REGISTERS
            }
        ),
        census_chunks=GuestVirtual(raw.census_chunks),
        nr_census_chunks=raw.nr_census_chunks,
        census_chunk_slots=raw.census_chunk_slots,
        census_other=raw.census_other,
        modules=GuestVirtual(raw.modules),
        modules_capacity=raw.modules_capacity,
    )


def read_status(space: AddressSpace, header: Header) -> HeaderStatus:
    """Read the changing fields, after a look at whether this is still the header of before.

    :raise ModuleGoneError: the guest was reset, or the module was unloaded or loaded again.
    :raise HeaderError: it claims more modules than its table holds.
    """
    try:
        raw = abi.HeaderLayout.from_buffer_copy(space.read(header.address, HEADER_SIZE))
    except TranslationError as error:
        raise ModuleGoneError from error
    found = (bytes(raw.magic), raw.self, raw.boot_nonce)
    if found != (abi.MAGIC, header.address, header.boot_nonce):
        raise ModuleGoneError
    _between("modules_count", raw.modules_count, (0, header.modules_capacity))
    return HeaderStatus(
        modules_count=raw.modules_count,
        modules_generation=raw.modules_generation,
        held=raw.held != 0,
        request_op=raw.request_op,
        request_seq=raw.request_seq,
        request_result=raw.request_result,
        request_done_seq=raw.request_done_seq,
    )


def _check_text(raw: abi.HeaderLayout) -> None:
    """Code must be where a rel32 reaches it, and ours must be in our module."""
    _between("module_text_size", raw.module_text_size, _TEXT_SIZE)
    _range("module_text", raw.module_text, raw.module_text_size, _TEXT)
    own = (raw.module_text, raw.module_text + raw.module_text_size)
    _between("arena_size", raw.arena_size, _ARENA_SIZE)
    _range("arena", raw.arena, raw.arena_size, own, _ARENA_ALIGNMENT)
    for register in THUNK_REGISTERS:
        name = register.name.lower()
        _range(f"thunk[{name}]", raw.thunk[register], abi.THUNK_HEAD, _TEXT)
        _range(f"learn_stub[{name}]", raw.learn_stub[register], 1, own)
        _range(f"census_stub[{name}]", raw.census_stub[register], 1, own)


def _check_tables(raw: abi.HeaderLayout) -> None:
    """Data may be anywhere in the kernel's half, but must be of a bounded size."""
    _between("poke_order", raw.poke_order, _POKE_ORDER)
    _between("nr_cpu_ids", raw.nr_cpu_ids, _CPU_IDS)
    _between("nr_record_chunks", raw.nr_record_chunks, _RECORD_CHUNKS)
    _between("nr_census_chunks", raw.nr_census_chunks, _CENSUS_CHUNKS)
    _between("census_chunk_slots", raw.census_chunk_slots, _CENSUS_SLOTS)
    _between("modules_capacity", raw.modules_capacity, _MODULES)
    for name, count, size in (
        ("poke_table", 1 << raw.poke_order, raw.poke_entry_size),
        ("per_cpu_offset", raw.nr_cpu_ids, 8),
        ("record_chunks", raw.nr_record_chunks, 8),
        ("census_chunks", raw.nr_census_chunks, 8),
        ("modules", raw.modules_capacity, ctypes.sizeof(abi.ModuleLayout)),
    ):
        _range(name, getattr(raw, name), count * size, _KERNEL, 8)
    for name in ("cpu_stats", "census_other"):
        if getattr(raw, name) % 8:
            raise HeaderError(name, getattr(raw, name), "a multiple of 8")


def _by_register(addresses: list[int]) -> Mapping[Register, GuestVirtual]:
    return MappingProxyType(
        {register: GuestVirtual(addresses[register]) for register in THUNK_REGISTERS}
    )


def _equal(field: str, value: int, wanted: int) -> None:
    if value != wanted:
        raise HeaderError(field, value, f"{wanted:#x}")


def _between(field: str, value: int, bounds: tuple[int, int]) -> None:
    low, high = bounds
    if not low <= value <= high:
        raise HeaderError(field, value, f"{low:#x} .. {high:#x}")


def _range(field: str, start: int, size: int, within: tuple[int, int], alignment: int = 1) -> None:
    low, high = within
    if not low <= start <= high - size or start % alignment:
        expected = f"{size:#x} bytes within {low:#x} .. {high:#x}"
        raise HeaderError(field, start, f"{expected}, aligned to {alignment}")
