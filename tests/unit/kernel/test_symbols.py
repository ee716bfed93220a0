import struct
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import SymbolsError
from optpolined.kernel.module.module_list import GuestModule
from optpolined.kernel.symbols.kallsyms import SYMBOL_NAME_MAX, load_kallsyms
from optpolined.kernel.symbols.module_symbols import ModuleSymbols, module_symbols
from optpolined.kernel.symbols.symbols import Function, Symbols
from optpolined.kernel.vmcoreinfo import Vmcoreinfo, parse_vmcoreinfo
from tests.unit.kernel.fake_guest import KERNEL_TEXT, FakeGuest

BASE = 0xFFFF_FFFF_8100_0000
SYMBOLS = [
    (0x34000, "percpu_thing"),
    (BASE, "_stext"),
    (BASE, "startup_64"),
    (BASE, "_text"),
    (BASE + 0x100, "__noinstr_text_start"),
    (BASE + 0x100, "__do_thing"),
    (BASE + 0x100, "do_thing"),
    (BASE + 0x140, "do_thing.cold"),
    (BASE + 0x180, "__noinstr_text_end"),
    (BASE + 0x200, "twice"),
    (BASE + 0x240, "twice"),
    (BASE + 0x300, "_etext"),
    (BASE + 0x1000, "some_data"),
    (BASE + 0x2000, "_sinittext"),
    (BASE + 0x2000, "start_kernel"),
    (BASE + 0x2100, "_einittext"),
]
TABLES = 0xFFFF_FFFF_8220_0000


class Kallsyms(FakeGuest):
    """A guest with a kallsyms table of one-character tokens."""

    def __init__(self, symbols: Sequence[tuple[int, str]] = SYMBOLS) -> None:
        super().__init__()
        self.kernel.map_range(TABLES, 0x100_0000, 0x8_0000)
        tokens = [chr(byte) if 0x21 <= byte < 0x7F else "?" for byte in range(256)]
        self.tables = {
            "kallsyms_relative_base": struct.pack("<Q", BASE),
            "kallsyms_num_syms": struct.pack("<I", len(symbols)),
            "kallsyms_offsets": b"".join(
                struct.pack("<i", BASE - 1 - address if address >= BASE else address)
                for address, _ in symbols
            ),
            "kallsyms_token_index": struct.pack("<256H", *range(0, 512, 2)),
            "kallsyms_token_table": "\0".join([*tokens, ""]).encode(),
            "kallsyms_names": b"".join(encoded(f"T{name}") for _, name in symbols),
        }

    def load(self) -> Vmcoreinfo:
        """Put the tables into memory, a page of nothing after each."""
        text = self.text + b"SYMBOL(_stext)=%x\n" % BASE
        place = TABLES + 0xFF8
        for name, table in self.tables.items():
            self.kernel.write(place, table)
            text += b"SYMBOL(%s)=%x\n" % (name.encode(), place)
            place = (place + len(table) + 0x2FFF) & ~0xFFF
        return parse_vmcoreinfo(text)


def encoded(name: str) -> bytes:
    size = len(name)
    head = bytes((size,)) if size < 128 else bytes((size & 127 | 128, size >> 7))
    return head + name.encode()


@pytest.fixture(scope="module")
def symbols() -> Symbols:
    guest = Kallsyms()
    return Symbols.load(guest.space, guest.load())


def at(offset: int) -> GuestVirtual:
    return GuestVirtual(KERNEL_TEXT + offset)


def test_kallsyms_come_back_as_they_are() -> None:
    long = [(BASE + 0x400, "x" * 300), (BASE + 0x401, "y" * 126), (BASE + 0x402, "z" * 128)]
    guest = Kallsyms([*SYMBOLS, *long])
    assert sorted(load_kallsyms(guest.space, guest.load())) == sorted([*SYMBOLS, *long])


@pytest.mark.parametrize(
    ("offset", "name"),
    [
        (0x0, "startup_64"),
        (0x100, "do_thing"),
        (0x11F, "do_thing+0x1f"),
        (0x140, "do_thing.cold"),
        (0x17F, "do_thing.cold+0x3f"),
        (0x180, "0xffffffff81000180"),
        (0x2FF, "twice+0xbf"),
        (0x300, "0xffffffff81000300"),
        (0x1000, "0xffffffff81001000"),
        (0x20FF, "start_kernel+0xff"),
        (-1, "0xffffffff80ffffff"),
    ],
)
def test_names(symbols: Symbols, offset: int, name: str) -> None:
    assert symbols.name(at(offset)) == name


def test_functions(symbols: Symbols) -> None:
    assert symbols.function(at(0x150)) == Function(at(0x140), 0x40, "do_thing.cold", None)
    assert symbols.function(at(0x190)) is None
    assert symbols.function(GuestVirtual(0)) is None
    assert symbols.function(GuestVirtual(2**64 - 1)) is None
    assert symbols.is_function_entry(at(0x200))
    assert not symbols.is_function_entry(at(0x201))
    assert not symbols.is_function_entry(at(0x180))
    found = symbols.functions_in(at(0x100), 0x140)
    assert [function.name for function in found] == ["do_thing", "do_thing.cold", "twice"]
    assert len(symbols.functions_in(GuestVirtual(0), 2**64)) == 6


def test_addresses(symbols: Symbols) -> None:
    assert symbols.address_of("some_data") == at(0x1000)
    assert symbols.address_of("percpu_thing") == 0x34000
    assert symbols.address_of("twice") is None
    assert symbols.addresses("twice") == [at(0x200), at(0x240)]
    assert symbols.address_of("nothing") is None


def test_sections(symbols: Symbols) -> None:
    assert symbols.section("_stext", "_etext") == (at(0), at(0x300))
    marks = ("__noinstr_text_start", "__noinstr_text_end")
    assert symbols.section(*marks) == (at(0x100), at(0x180))
    for start, end in (("_etext", "_stext"), ("_stext", "_nowhere"), ("twice", "_etext")):
        with pytest.raises(SymbolsError, match=f"{start} to {end}"):
            symbols.section(start, end)


def test_a_kernel_that_does_not_say_where_its_text_is() -> None:
    with pytest.raises(SymbolsError, match="_sinittext"):
        Symbols(SYMBOLS[:-3])


def test_a_kernel_that_claims_too_much_text() -> None:
    far = [(at if name != "_etext" else BASE + (129 << 20), name) for at, name in SYMBOLS[:-3]]
    end = [(BASE + (200 << 20), "_sinittext"), (BASE + (201 << 20), "_einittext")]
    with pytest.raises(SymbolsError, match="bytes of text"):
        Symbols([*far, *end])


# What a hostile guest may try.

BAD_TABLES = {
    "no symbols": ("kallsyms_num_syms", bytes(4), "claim 0"),
    "too many symbols": ("kallsyms_num_syms", b"\xff" * 4, "claim 4294967295"),
    "more symbols than names": ("kallsyms_num_syms", b"\x00\x80\0\0", "kallsyms"),
    "tokens without end": ("kallsyms_token_table", b"x" * 0x1_2000, "does not end|not mapped"),
    "tokens of control bytes": ("kallsyms_token_table", b"\x1b[31m\0" * 100, "not text"),
    "tokens beyond ASCII": ("kallsyms_token_table", b"\xe9\0" * 256, "not text"),
    "tokens beyond the table": ("kallsyms_token_index", b"\xff\xff" * 256, "is not text|drgn"),
    "three-byte lengths": ("kallsyms_names", b"\xff\xff" * 64, "do not end|not mapped|drgn"),
    "another base": ("kallsyms_relative_base", bytes(8), "drgn"),
}


@pytest.mark.parametrize("case", BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_tables_that_make_no_sense(case: tuple[str, bytes, str]) -> None:
    name, table, says = case
    guest = Kallsyms()
    guest.tables[name] = table
    with pytest.raises(SymbolsError, match=says):
        load_kallsyms(guest.space, guest.load())


def test_names_that_would_fill_the_hosts_memory() -> None:
    # 16 names of 16,383 tokens of 1000 bytes: 260 MB from 0.3 MB of tables.
    guest = Kallsyms()
    guest.tables["kallsyms_token_index"] = bytes(512)
    guest.tables["kallsyms_token_table"] = b"x" * 1000 + b"\0"
    guest.tables["kallsyms_names"] = (b"\xff\x7f" + bytes(16383)) * len(SYMBOLS)
    with pytest.raises(SymbolsError, match="absurdly long"):
        load_kallsyms(guest.space, guest.load())


def test_tables_that_overlap() -> None:
    guest = Kallsyms()
    text = guest.load().text
    places = parse_vmcoreinfo(text).symbols
    names, base = places["kallsyms_names"], places["kallsyms_relative_base"]
    moved = text.replace(b"base)=%x" % base, b"base)=%x" % (names + 8))
    with pytest.raises(SymbolsError, match="overlap"):
        load_kallsyms(guest.space, parse_vmcoreinfo(moved))


@pytest.mark.parametrize("line", [b"BUILD-ID=zz", b"PAGESIZE=3", b"NUMBER(phys_base)=x"])
def test_drgn_is_given_no_line_that_the_guest_wrote(line: bytes) -> None:
    guest = Kallsyms()
    vmcoreinfo = parse_vmcoreinfo(guest.load().text + line + b"\n")
    assert sorted(load_kallsyms(guest.space, vmcoreinfo)) == sorted(SYMBOLS)


@pytest.mark.parametrize("name", ["kallsyms_names", "kallsyms_offsets"])
def test_tables_that_are_missing_or_not_mapped(name: str) -> None:
    guest = Kallsyms()
    text = guest.load().text
    with pytest.raises(SymbolsError, match=f"lacks {name}"):
        load_kallsyms(guest.space, parse_vmcoreinfo(text.replace(name.encode(), b"other")))
    away = text.replace(
        b"SYMBOL(%s)=ffffffff" % name.encode(), b"SYMBOL(%s)=ffffff7f" % name.encode()
    )
    with pytest.raises(SymbolsError, match="not mapped"):
        load_kallsyms(guest.space, parse_vmcoreinfo(away))


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(Kallsyms().tables)),
    offset=st.integers(0, 300),
    garbage=st.binary(min_size=1, max_size=64),
)
def test_any_table_is_refused_or_gives_text(name: str, offset: int, garbage: bytes) -> None:
    guest = Kallsyms()
    table = bytearray(guest.tables[name])
    table[offset : offset + len(garbage)] = garbage
    guest.tables[name] = bytes(table[: len(guest.tables[name])])
    vmcoreinfo = guest.load()
    try:
        symbols = load_kallsyms(guest.space, vmcoreinfo)
    except SymbolsError:
        return
    assert all(found.isascii() and found.isprintable() for _, found in symbols)


# Modules.

TEXT = 0xFFFF_FFFF_C050_0000
FUNC, OBJECT, NOTYPE = 2, 1, 0


def elf_symbol(name: int, kind: int, value: int, size: int = 0) -> bytes:
    return struct.pack("<IBBHQQ", name, kind | 0x10, 0, 1, value, size)


def put_module(guest: FakeGuest, symtab: bytes, strtab: bytes) -> GuestModule:
    table, strings = TEXT + 0x8000, TEXT + 0xC000
    guest.kernel.map_range(table, 0x200_0000, max(1, len(symtab)))
    guest.kernel.map_range(strings, 0x210_0000, max(1, len(strtab)))
    guest.kernel.write(table, symtab)
    guest.kernel.write(strings, strtab)
    return GuestModule(
        "veth",
        GuestVirtual(TEXT),
        0x1000,
        GuestVirtual(table),
        GuestVirtual(strings),
        len(symtab) // 24,
    )


def test_the_functions_of_a_module() -> None:
    guest = Kallsyms()
    strtab = b"\0veth_xmit\0data\0veth_asm\0alias\0away\0"
    place = {
        name: strtab.index(name) for name in (b"veth_xmit", b"data", b"veth_asm", b"alias", b"away")
    }
    symtab = b"".join(
        (
            bytes(24),
            elf_symbol(place[b"veth_asm"], NOTYPE, TEXT + 0x200),
            elf_symbol(place[b"alias"], NOTYPE, TEXT),
            elf_symbol(place[b"veth_xmit"], FUNC, TEXT, 0x180),
            elf_symbol(place[b"data"], OBJECT, TEXT + 0x300, 8),
            elf_symbol(place[b"away"], FUNC, TEXT + 0x1000, 8),
        )
    )
    module = put_module(guest, symtab, strtab)
    found = module_symbols(guest.space, module, 1 << 20)
    assert found.functions == [(TEXT, 0x180, "veth_xmit"), (TEXT + 0x200, 0xE00, "veth_asm")]
    read = len(symtab) + place[b"alias"] + SYMBOL_NAME_MAX
    assert found.cost == read + 3 * (256 + SYMBOL_NAME_MAX)

    symbols = Symbols(SYMBOLS)
    symbols.set_modules(guest.space, [module])
    assert symbols.name(GuestVirtual(TEXT)) == "veth_xmit [veth]"
    assert symbols.name(GuestVirtual(TEXT + 0x17F)) == "veth_xmit+0x17f [veth]"
    assert symbols.name(GuestVirtual(TEXT + 0x180)) == f"{TEXT + 0x180:#x}"
    assert symbols.is_function_entry(GuestVirtual(TEXT + 0x200))
    assert symbols.name(at(0x100)) == "do_thing"
    symbols.set_modules(guest.space, [])
    assert symbols.function(GuestVirtual(TEXT)) is None


def test_a_module_whose_tables_are_not_mapped_or_too_large() -> None:
    guest = FakeGuest()
    nowhere = GuestVirtual(0xFFFF_FFFF_C0FF_0000)
    module = GuestModule("gone", GuestVirtual(TEXT), 0x1000, nowhere, nowhere, 200_000)
    assert module_symbols(guest.space, module, 1 << 30) == ModuleSymbols((), (), 4_800_000)
    assert module_symbols(guest.space, module, 4_799_999) == ModuleSymbols((), (), 0)
    module = put_module(guest, elf_symbol(1, FUNC, TEXT), b"\0f\0")
    assert module_symbols(guest.space, module, 24 + 10) == ModuleSymbols((), (), 24)
    read = 24 + 1 + SYMBOL_NAME_MAX
    enough = read + 256 + SYMBOL_NAME_MAX
    assert module_symbols(guest.space, module, enough - 1) == ModuleSymbols((), (), 24)
    assert module_symbols(guest.space, module, enough).functions != []


def test_where_the_site_records_of_kernel_and_modules_begin() -> None:
    guest = Kallsyms()
    strtab = b"\0f\0__optpoline_sites\0__optpoline_sites_end\0"
    run, other = strtab.index(b"__optpoline_sites\0"), strtab.index(b"__optpoline_sites_end")
    symtab = b"".join(
        (
            elf_symbol(run, OBJECT, TEXT + 0x2000),
            elf_symbol(other, OBJECT, TEXT + 0x2100),
            elf_symbol(run, OBJECT, TEXT + 0x2200),
            elf_symbol(run, FUNC, TEXT + 0x2300),
            elf_symbol(run, OBJECT, TEXT + 0x800),
        )
    )
    module = put_module(guest, symtab, strtab)
    records = [GuestVirtual(TEXT + 0x2000), GuestVirtual(TEXT + 0x2200)]
    assert module_symbols(guest.space, module, 1 << 20).runs == records

    in_kernel = BASE + 0x1800
    symbols = Symbols([*SYMBOLS, (in_kernel, "__optpoline_sites")])
    assert symbols.runs == [in_kernel]
    symbols.set_modules(guest.space, [module])
    assert symbols.runs == [in_kernel, *records]
    symbols.set_modules(guest.space, [])
    assert symbols.runs == [in_kernel]


def test_no_module_has_more_site_records_than_any_real_one() -> None:
    guest = FakeGuest()
    symtab = elf_symbol(1, OBJECT, TEXT + 0x2000) * 9000
    module = put_module(guest, b"", b"\0__optpoline_sites\0")
    table = TEXT + 0x10_0000
    guest.kernel.map_range(table, 0x220_0000, len(symtab))
    guest.kernel.write(table, symtab)
    module = replace(module, symtab=GuestVirtual(table), nr_symbols=9000)
    assert len(module_symbols(guest.space, module, 1 << 30).runs) == 8192


@settings(deadline=None)
@given(
    rows=st.lists(
        st.builds(
            elf_symbol,
            st.integers(0, 64) | st.integers(0, 2**32 - 1),
            st.sampled_from((NOTYPE, OBJECT, FUNC)),
            st.integers(TEXT - 16, TEXT + 0x1010) | st.integers(0, 2**64 - 1),
            st.integers(0, 2**64 - 1) | st.integers(0, 64),
        )
        | st.binary(min_size=24, max_size=24),
        max_size=24,
    ),
    strtab=st.binary(max_size=80),
)
def test_any_symbol_table_gives_functions_within_the_text(rows: list[bytes], strtab: bytes) -> None:
    guest = FakeGuest()
    module = put_module(guest, b"".join(rows), strtab)
    found = module_symbols(guest.space, module, 1 << 30)
    starts = [start for start, _, _ in found.functions]
    assert starts == sorted(set(starts))
    for start, size, name in found.functions:
        assert module.text <= start < start + size <= module.text + module.size
        assert name.isascii()
        assert name.isprintable()
        assert len(name) <= SYMBOL_NAME_MAX
