"""A whole guest made of bytes: everything that the daemon reads, well-formed, in 8 MiB of RAM.

`GUEST` is built once; each example lays its corruptions over it (`hostile_memory.py`).  It has the
leftovers of a daemon that died: a patched site, one with a breakpoint of ours, and one that another
program has written to.  That daemon died during a census: half of the thunks are armed.
"""

import ctypes
import struct
from dataclasses import dataclass, replace
from typing import Final

from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.codegen.assemble import Assembler, site_instruction
from optpolined.codegen.forms import Chain
from optpolined.kernel.module import abi
from optpolined.kernel.module.abi import PokeState, SiteKind
from optpolined.kernel.module.attachment import Attachment, attach
from optpolined.kernel.module.poke_table import ENTRY_SIZE, PokeEntry, PokeTable, encode
from optpolined.kernel.paging import AddressSpace
from optpolined.qemu.memory import PhysicalMemory
from optpolined.x86 import INT3, THUNK_REGISTERS, Register
from tests.unit.kernel.fake_guest import (
    HEADER,
    KERNEL_TEXT,
    MODULE_TEXT,
    NO_EXECUTE,
    TABLES,
    WRITABLE,
    FakeMemory,
    PageTables,
    note,
    raw_header,
    registers,
)

__all__ = ("FUNCTIONS", "GUEST", "RAM_SIZE", "SITES", "Region", "WholeGuest")

RAM_SIZE: Final = 8 << 20
_ROOT: Final = 0x10_0000
_PROCESS_ROOT: Final = 0x20_0000

_TEXT_SIZE: Final = 0x4000
_THUNKS: Final = KERNEL_TEXT + 0x3000
_INIT: Final = KERNEL_TEXT + 0x10_0000
_KALLSYMS: Final = 0xFFFF_FFFF_8220_0000
_BLACKLIST: Final = 0xFFFF_FFFF_8240_0000
_VETH: Final = 0xFFFF_FFFF_C050_0000
_VETH_TABLES: Final = _VETH + 0x8000
_PER_CPU: Final = 0xFFFF_8880_0060_0000
_PER_CPU_SIZE: Final = 0x1_0000
_CHUNK: Final = 0x1000
_CPU_STATS: Final = 0x800
_CENSUS_OTHER: Final = 0x900
_CENSUS_CHUNK: Final = 0xA000
_CENSUS_SLOTS: Final = 64
_ARENA: Final = MODULE_TEXT + 0x3000
_ARENA_SIZE: Final = 0x1_0000
_CPUS: Final = 2

FUNCTIONS: Final = 8
"""Of the kernel, each with one site; the module has one more."""

_FIRST_FUNCTION: Final = KERNEL_TEXT + 0x400
_FUNCTION_SIZE: Final = 0x40
_BLOCKS: Final = (GuestVirtual(_ARENA + 0x40), GuestVirtual(_ARENA + 0x80))


@dataclass(frozen=True)
class Region:
    """``size`` bytes of one kind, from ``physical`` on."""

    name: str
    physical: int
    size: int


@dataclass(frozen=True)
class FakeSite:
    """A call or jmp to the thunk of ``register``, and the function that it is in."""

    address: GuestVirtual
    original: bytes
    kind: SiteKind
    register: Register


def _thunk(register: Register) -> GuestVirtual:
    return GuestVirtual(_THUNKS + 32 * register)


def _site(function: int, *, prefix: bool, jump: bool, register: Register) -> FakeSite:
    address = GuestVirtual(function + 1)
    opcode = b"\x2e" * prefix + (b"\xe9" if jump else b"\xe8")
    original = site_instruction(opcode + bytes(4), address, _thunk(register))
    return FakeSite(address, original, SiteKind.JMP if jump else SiteKind.CALL, register)


SITES: Final = tuple(
    _site(
        _FIRST_FUNCTION + number * _FUNCTION_SIZE,
        prefix=number % 3 == 2,
        jump=number % 4 == 3,
        register=(Register.RAX, Register.RBX, Register.R11, Register.R15)[number % 4],
    )
    for number in range(FUNCTIONS)
)
_VETH_SITE: Final = _site(_VETH + 0x100, prefix=False, jump=False, register=Register.RAX)


class WholeGuest:
    """The guest, and where each kind of its data is in its RAM."""

    def __init__(self) -> None:
        self.memory = FakeMemory(RAM_SIZE)
        self.tables = PageTables(self.memory, _ROOT)
        self.regions: dict[str, Region] = {}
        self.symbols: list[tuple[int, str]] = []
        self._map_all()
        self._put_header()
        self._put_text()
        self._put_kallsyms()
        self._put_modules()
        self._put_counters()
        self._put_census()
        self._put_blacklist()
        self._put_leftovers()
        self._note(self._vmcoreinfo)
        self.memory.write(_PROCESS_ROOT, self.memory.read(GuestPhysical(_ROOT), 4096))
        self._name("paging", _ROOT, 0x2_0000)
        self._name("root", _PROCESS_ROOT, 4096)
        self.registers = registers(_PROCESS_ROOT | 0x1000, _PROCESS_ROOT)
        attachment = attach(self.memory, self.registers)
        self.header = attachment.header
        self.vmcoreinfo = attachment.vmcoreinfo

    def attachment(self, memory: PhysicalMemory) -> Attachment:
        """What ``attach`` finds, over a memory that may say other things by now."""
        return Attachment(
            self.header, AddressSpace(memory, GuestPhysical(_ROOT), 4), self.vmcoreinfo
        )

    def _name(self, name: str, physical: int, size: int) -> None:
        self.regions[name] = Region(name, physical, size)

    def _used(self, name: str, virtual: int, size: int) -> None:
        """Let corruptions hit what is read of a table, not the empty rest of its page."""
        self._name(name, self.tables.space.translate(GuestVirtual(virtual)), size)

    def _map(self, name: str, virtual: int, physical: int, size: int, flags: int = 0) -> None:
        self.tables.map_range(virtual, physical, size, flags)
        self._name(name, physical, size)

    def _map_all(self) -> None:
        self._map("header", HEADER, 0x30_0000, 4096, WRITABLE | NO_EXECUTE)
        self._map("poke table", TABLES, 0x31_0000, 0x2000, WRITABLE)
        self._map("offsets", TABLES + 0x1_0000, 0x32_0000, 0x1000, WRITABLE)
        self._map("blacklist", _BLACKLIST, 0x33_0000, 0x1000, WRITABLE)
        self._map("modules", TABLES + 0x2_0000, 0x34_0000, 0x2000, WRITABLE)
        self._map("module text", MODULE_TEXT, 0x40_0000, 0x3000)
        self._map("arena", _ARENA, 0x40_3000, _ARENA_SIZE)
        self._map("veth text", _VETH, 0x42_0000, 0x1000)
        self._map("module symbols", _VETH_TABLES, 0x42_8000, 0x2000)
        self._map("text", KERNEL_TEXT, 0x50_0000, _TEXT_SIZE)
        self._map("init text", _INIT, 0x51_0000, 0x1000)
        self._map("kallsyms", _KALLSYMS, 0x52_0000, 0x1_0000)
        self._map("counters", _PER_CPU, 0x60_0000, _CPUS * _PER_CPU_SIZE, WRITABLE)

    def _put_header(self) -> None:
        raw = raw_header()
        raw.module_text_size = 0x3000 + _ARENA_SIZE
        raw.arena, raw.arena_size = _ARENA, _ARENA_SIZE
        raw.poke_order = 8
        raw.per_cpu_offset, raw.record_chunks = TABLES + 0x1_0000, TABLES + 0x1_0800
        raw.nr_cpu_ids, raw.nr_record_chunks = _CPUS, 1
        raw.cpu_stats = _CPU_STATS
        raw.census_chunks, raw.nr_census_chunks = TABLES + 0x1_0C00, 1
        raw.census_chunk_slots, raw.census_other = _CENSUS_SLOTS, _CENSUS_OTHER
        raw.modules, raw.modules_capacity, raw.modules_count = TABLES + 0x2_0000, 64, 2
        for register in Register:
            raw.thunk[register] = 0 if register is Register.RSP else _thunk(register)
        self.raw = raw
        physical = self.regions["header"].physical
        self.memory.write(physical, bytes(raw))
        changing = abi.offset_of(abi.HeaderLayout, "modules_count")
        self._name("status", physical + changing, ctypes.sizeof(raw) - changing)

    def _put_text(self) -> None:
        marks = (
            (KERNEL_TEXT, ("_stext", "_text", "startup_64")),
            (KERNEL_TEXT + 0x100, ("__entry_text_start", "entry_SYSCALL_64")),
            (KERNEL_TEXT + 0x200, ("__entry_text_end", "__noinstr_text_start", "exc_int3")),
            (KERNEL_TEXT + 0x300, ("__noinstr_text_end", "notify_die")),
            (_THUNKS, ("__indirect_thunk_start", "__x86_indirect_thunk_array")),
            (_THUNKS + 0x200, ("__indirect_thunk_end", "last")),
            (KERNEL_TEXT + _TEXT_SIZE, ("_etext",)),
            (_INIT, ("_sinittext", "start_kernel")),
            (_INIT + 0x100, ("_einittext",)),
            (_BLACKLIST, ("kprobe_blacklist",)),
        )
        self.symbols = [(address, name) for address, names in marks for name in names]
        self.tables.write(KERNEL_TEXT, b"\x90" * _TEXT_SIZE)
        for number, site in enumerate(SITES):
            function = site.address - 1
            self.symbols.append((function, f"call_{number}"))
            self.tables.write(function, b"\x55" + site.original + b"\x5d\xc3")

    def _put_kallsyms(self) -> None:
        tokens = [chr(byte) if 0x21 <= byte < 0x7F else "?" for byte in range(256)]
        tables = {
            "kallsyms_relative_base": struct.pack("<Q", KERNEL_TEXT),
            "kallsyms_num_syms": struct.pack("<I", len(self.symbols)),
            "kallsyms_offsets": b"".join(
                struct.pack("<i", KERNEL_TEXT - 1 - address) for address, _ in self.symbols
            ),
            "kallsyms_token_index": struct.pack("<256H", *range(0, 512, 2)),
            "kallsyms_token_table": "\0".join([*tokens, ""]).encode(),
            "kallsyms_names": b"".join(
                bytes((len(name) + 1,)) + b"T" + name.encode() for _, name in self.symbols
            ),
        }
        text = (
            b"OSRELEASE=6.1.0-56-cloud-amd64\nPAGESIZE=4096\n"
            b"SYMBOL(swapper_pg_dir)=ffffffff82610000\nNUMBER(phys_base)=-38862848\n"
            b"NUMBER(pgtable_l5_enabled)=0\nSYMBOL(_stext)=%x\n" % KERNEL_TEXT
        )
        place = _KALLSYMS
        for name, table in tables.items():
            self.tables.write(place, table)
            physical = self.tables.space.translate(GuestVirtual(place))
            self._name(name, physical, len(table))
            text += b"SYMBOL(%s)=%x\n" % (name.encode(), place)
            place += (len(table) + 0xFFF) & ~0xFFF
        self._vmcoreinfo = text

    def _note(self, text: bytes) -> None:
        self.memory.write(0x8000, note(text))
        self._name("note", 0x8000, len(note(text)))

    def _put_modules(self) -> None:
        strings = b"\0veth_xmit\0veth_asm\0"
        rows = (bytes(24), self._elf_symbol(1, _VETH, 0xF0), self._elf_symbol(11, _VETH + 0x100, 0))
        self.tables.write(_VETH_TABLES, b"".join(rows))
        self.tables.write(_VETH_TABLES + 0x1000, strings)
        self._used("module symbols", _VETH_TABLES, 24 * len(rows))
        self._used("module strings", _VETH_TABLES + 0x1000, len(strings))
        body = b"\x55" + _VETH_SITE.original + b"\x5d\xc3"
        self.tables.write(_VETH, b"\x90" * 0x1000)
        self.tables.write(_VETH_SITE.address - 1, body)
        modules = (
            (b"optpoline", MODULE_TEXT, self.raw.module_text_size, 0),
            (b"veth", _VETH, 0x1000, len(rows)),
        )
        for number, (name, start, size, nr_symbols) in enumerate(modules):
            entry = abi.ModuleLayout(
                name=(ctypes.c_uint8 * abi.MODULE_NAME_LEN)(*name),
                text=start,
                text_size=size,
                symtab=_VETH_TABLES,
                strtab=_VETH_TABLES + 0x1000,
                nr_symbols=nr_symbols,
            )
            self.tables.write(self.raw.modules + number * ctypes.sizeof(entry), bytes(entry))
        self._used("modules", self.raw.modules, len(modules) * ctypes.sizeof(abi.ModuleLayout))

    @staticmethod
    def _elf_symbol(name: int, value: int, size: int) -> bytes:
        return struct.pack("<IBBHQQ", name, 0x12, 0, 1, value, size)

    def _put_counters(self) -> None:
        starts = [_PER_CPU + number * _PER_CPU_SIZE for number in range(_CPUS)]
        self.tables.write(self.raw.per_cpu_offset, struct.pack(f"<{_CPUS}Q", *starts))
        self.tables.write(self.raw.record_chunks, struct.pack("<Q", _CHUNK))
        target = SITES[4].address - 1
        for start in starts:
            self.tables.write(start + _CHUNK, struct.pack("<2I", target & 0xFFFF_FFFF, 1000))
            self.tables.write(start + _CPU_STATS, struct.pack("<2Q", 7, 1))
        self._used("offsets", self.raw.per_cpu_offset, 8 * _CPUS)
        self._used("chunks", self.raw.record_chunks, 8)
        self._used("counters", _PER_CPU + _CHUNK, 4 * ctypes.sizeof(abi.CounterRecord))
        self._used("statistics", _PER_CPU + _CPU_STATS, 16)

    def _put_census(self) -> None:
        """Half of the thunks are armed; each site has called the function of the next."""
        for register in THUNK_REGISTERS:
            head = bytes(self.raw.thunk_head[register])[: abi.THUNK_HEAD]
            if register % 2:
                behind = _thunk(register) + abi.THUNK_HEAD
                rel32 = self.raw.census_stub[register] - behind
                head = b"\xe9" + rel32.to_bytes(4, "little", signed=True)
            self.tables.write(_thunk(register), head)
        self.tables.write(self.raw.census_chunks, struct.pack("<Q", _CENSUS_CHUNK))
        for cpu in range(_CPUS):
            start = _PER_CPU + cpu * _PER_CPU_SIZE
            for number, site in enumerate(SITES):
                returns_to = site.address + len(site.original)
                target = SITES[(number + 1) % len(SITES)].address - 1
                key = (returns_to & 0xFFFF_FFFF) << 32 | target & 0xFFFF_FFFF
                slot = struct.pack("<2Q", key, 100 * number + cpu)
                self.tables.write(start + _CENSUS_CHUNK + 16 * number, slot)
            self.tables.write(start + _CENSUS_OTHER, struct.pack("<Q", 3))
        self._used("thunks", _THUNKS, 16 * 32)
        self._used("census chunks", self.raw.census_chunks, 8)
        self._used("census slots", _PER_CPU + _CENSUS_CHUNK, 16 * (len(SITES) + 2))
        self._used("census other", _PER_CPU + _CENSUS_OTHER, 8)

    def _put_blacklist(self) -> None:
        places = [_BLACKLIST + 64 * number for number in range(4)]
        for number, place in enumerate(places):
            start = KERNEL_TEXT + 0x300 + 16 * number if number else 0
            links = (places[(number + 1) % 4], places[number - 1], start, start + 16)
            self.tables.write(place, struct.pack("<4Q", *links))
        self._used("blacklist", _BLACKLIST, 64 * len(places))

    def _put_leftovers(self) -> None:
        assembler = Assembler()
        image = bytearray(ENTRY_SIZE << self.raw.poke_order)
        table = PokeTable(bytes(image))
        for number in range(4):
            site = SITES[number]
            entry = PokeEntry(
                site.address, _thunk(site.register), site.kind, PokeState.IDLE, site.original
            )
            if number in (1, 3):
                entry = replace(entry, state=PokeState.ARMED)
            place = table.put(entry) * ENTRY_SIZE
            image[place : place + ENTRY_SIZE] = encode(entry)
        self.tables.write(self.raw.poke_table, bytes(image))
        for number, at in enumerate(_BLOCKS):
            site = SITES[number]
            stub = GuestVirtual(self.raw.learn_stub[site.register])
            form = Chain((GuestVirtual(SITES[5].address - 1),))
            code = assembler.assemble(
                form, register=site.register, at=at, record=_CHUNK, learn_stub=stub
            )
            self.tables.write(at, code)
            patched = site_instruction(site.original, site.address, at)
            if number == 1:
                patched = bytes([INT3]) + patched[1:]
            self.tables.write(site.address, patched)
        self.tables.write(SITES[3].address, b"\x0f\x1f\x44\x00\x00"[: len(SITES[3].original)])


GUEST: Final = WholeGuest()
