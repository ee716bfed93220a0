"""Guests that claim as much of everything as they may: what it costs the host stays bounded.

They need no memory of their own for that: a gibibyte that is one page over and over is mapped
everywhere.
"""

import struct
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest

from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.kernel.errors import (
    CountersError,
    ModuleListError,
    ModuleMissingError,
    SymbolsError,
    TextError,
)
from optpolined.kernel.module import abi
from optpolined.kernel.module.attachment import attach
from optpolined.kernel.module.counters import Counters
from optpolined.kernel.module.module_list import GuestModule, read_modules
from optpolined.kernel.module.poke_table import ENTRY_SIZE, PokeTable
from optpolined.kernel.paging import AddressSpace
from optpolined.kernel.sites.scan import SITES_MAX, scan, with_originals
from optpolined.kernel.sites.thunks import Thunks
from optpolined.kernel.symbols.kallsyms import KERNEL_SYMBOLS_MAX, load_kallsyms
from optpolined.kernel.symbols.symbols import Symbols
from optpolined.kernel.vmcoreinfo import Vmcoreinfo, parse_vmcoreinfo
from optpolined.x86 import Register
from tests.hostile.whole_guest import GUEST
from tests.unit.kernel.fake_guest import HEADER, KERNEL_TEXT, MODULE_TEXT, registers

MIB = 1 << 20
GIB = 1 << 30
TOP = 1 << 64
ROOT = 0x2000
"""Bit 12 is clear: with page-table isolation it would be two roots."""


class Endless:
    """``page`` over and over, but for what is in ``places`` by physical address.

    The tables at ROOT map each address to its low 30 bits; with ``small`` they do so in pages of
    4 KiB, all of them the first.
    """

    def __init__(
        self,
        page: bytes = bytes(4096),
        places: Mapping[int, bytes] | None = None,
        *,
        small: bool = False,
    ) -> None:
        self.reads = 0
        self._pattern = page * 16
        self._places = dict(places or {})
        tables = [ROOT, *((0x3000, 0x4000, 0x5000) if small else (0x3000,)), 0]
        for table, below in pairwise(tables):
            self._places[table] = struct.pack("<Q", below | (3 if below else 0x83)) * 512

    @property
    def space(self) -> AddressSpace:
        return AddressSpace(self, GuestPhysical(ROOT), 4)

    def read(self, address: GuestPhysical, size: int) -> bytes:
        self.reads += 1
        assert 0 <= address <= GIB - size
        offset = address % 4096
        pattern = self._pattern * (1 + size // (8 * 4096))
        data = bytearray(pattern[offset : offset + size])
        for start, found in self._places.items():
            low, high = max(start, address), min(start + len(found), address + size)
            if low < high:
                data[low - address : high - address] = found[low - start : high - start]
        return bytes(data)


@contextmanager
def at_most(mebibytes: int) -> Iterator[None]:
    """Fail where the block allocates more at any time; numpy counts, the C of drgn does not."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= mebibytes * MIB, f"{peak / MIB:.0f} MiB"


@pytest.mark.parametrize("small", [True, False])
def test_a_module_area_full_of_pages(small: bool) -> None:
    memory = Endless(small=small)
    with pytest.raises(ModuleMissingError):
        attach(memory, registers(*[ROOT] * 3, ROOT | 0x1000))
    assert memory.reads <= 410_000


def test_a_note_full_of_symbols() -> None:
    lines = "".join(f"SYMBOL(s{number})={number:x}\n" for number in range(4000))
    with at_most(8):
        assert len(parse_vmcoreinfo(f"OSRELEASE=6.1\n{lines}".encode()).symbols) == 4000


TABLES = ("num_syms", "token_index", "token_table", "names", "offsets", "relative_base")


@pytest.mark.parametrize(
    ("token", "name", "says"),
    [
        (b"x" * 1000, b"\x1f" + bytes(31), "absurdly long"),
        (b"", b"\xff\x7f" + bytes(16383), "do not end"),
    ],
)
def test_a_million_symbols(token: bytes, name: bytes, says: str) -> None:
    places = {f"kallsyms_{table}": 0x800_0000 * number for number, table in enumerate(TABLES, 1)}
    assert max(places.values()) < GIB
    memory = Endless(
        (name * 4096)[:4096] if len(name) <= 32 else bytes(4096),
        {
            places["kallsyms_num_syms"]: struct.pack("<I", KERNEL_SYMBOLS_MAX),
            places["kallsyms_token_index"]: bytes(512),
            places["kallsyms_token_table"]: token + b"\0" * 9,
            places["kallsyms_names"]: name * (33 * MIB // len(name)) if len(name) > 32 else b"",
        },
    )
    symbols = {table: GuestVirtual(TOP - GIB + place) for table, place in places.items()}
    note = Vmcoreinfo(b"", "6.1", {"_stext": KERNEL_TEXT, **symbols}, {})
    with at_most(128), pytest.raises(SymbolsError, match=says):
        load_kallsyms(memory.space, note)


def modules_of(*modules: abi.ModuleLayout) -> tuple[Endless, int]:
    """A guest whose table of modules holds these over and over, and how many those are."""
    count = 65536 // len(modules) * len(modules)
    raw = abi.HeaderLayout.from_buffer_copy(bytes(GUEST.raw))
    raw.modules_capacity = raw.modules_count = count
    table = b"".join(map(bytes, modules)) * (count // len(modules))
    return Endless(places={raw.modules % GIB: table, HEADER % GIB: bytes(raw)}), count


def test_modules_with_more_text_than_fits_the_host() -> None:
    module = abi.ModuleLayout(text=MODULE_TEXT, text_size=512 * MIB)
    memory, count = modules_of(module)
    header = replace(GUEST.header, modules_capacity=count)
    with at_most(128), pytest.raises(ModuleListError, match="bytes of text"):
        read_modules(memory.space, header)


def test_modules_with_symbols_without_number() -> None:
    rows = b"".join(
        struct.pack("<IBBHQQ", 1, 2, 0, 1, MODULE_TEXT + number, 1) for number in range(200_000)
    )
    memory = Endless(b"x" * 4096, {0x1000_0000: rows})
    symtab, strtab = GuestVirtual(TOP - GIB + 0x1000_0000), GuestVirtual(TOP - GIB + 0x2000_0000)
    module = GuestModule("m", MODULE_TEXT, MIB, symtab, strtab, 200_000)
    symbols = Symbols((at, name) for at, name in GUEST.symbols)
    symbols.set_modules(memory.space, [module] * 100)
    functions = symbols.functions_in(GuestVirtual(0), TOP)
    assert sum(256 + len(function.name) for function in functions) <= 256 * MIB
    assert memory.reads < 20_000


def test_a_full_poke_table() -> None:
    order = 17
    entry = struct.pack("<QBBB5x8s", KERNEL_TEXT, 1, 1, 5, b"\xe8\1\2\3\4")
    image = b"".join(
        struct.pack("<Q", KERNEL_TEXT + number) + entry for number in range(1 << order)
    )
    assert len(image) == ENTRY_SIZE << order
    table = PokeTable(image)
    assert len(table.entries) + len(table.defects) == 1 << order
    originals = {site: entry.original for site, entry in table.entries.items()}
    asked = 0

    class Counted(dict[GuestVirtual, bytes]):
        def __getitem__(self, site: GuestVirtual) -> bytes:
            nonlocal asked
            asked += 1
            return super().__getitem__(site)

    counted = Counted(originals)
    for number in range(1000):
        with_originals(bytes(8), GuestVirtual(KERNEL_TEXT + 8 * number), counted)
    assert asked <= 8 * 1000


def test_text_full_of_calls() -> None:
    thunk = GuestVirtual(KERNEL_TEXT + 64 * MIB)
    ends = range(5, 5 * (SITES_MAX + 2), 5)
    text = b"".join(b"\xe8" + struct.pack("<i", thunk - KERNEL_TEXT - end) for end in ends)
    with at_most(64), pytest.raises(TextError, match="more than"):
        scan(text, KERNEL_TEXT, Thunks.one_array({Register.RAX: thunk}), ())


def test_text_full_of_opcodes() -> None:
    text = b"\xe8" * (16 * MIB)
    with at_most(80):
        assert not scan(text, KERNEL_TEXT, Thunks.one_array({Register.RAX: KERNEL_TEXT}), ()).sites


@pytest.mark.parametrize(("cpus", "fits"), [(64, True), (65, False), (8192, False)])
def test_counters_of_all_the_cpus_there_may_be(cpus: int, fits: bool) -> None:
    header = replace(GUEST.header, nr_cpu_ids=cpus, nr_record_chunks=128)
    memory = Endless()
    with at_most(260):
        counters = Counters.from_header(memory.space.read, header)
        if fits:
            assert counters.snapshot(counters.capacity).shape == (cpus, 1 << 16)
        else:
            with pytest.raises(CountersError, match="more than"):
                counters.snapshot(counters.capacity)
