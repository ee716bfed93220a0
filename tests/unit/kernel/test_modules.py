import ctypes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.kernel.errors import HeaderError, KernelError, ModuleGoneError, ModuleListError
from optpolined.kernel.module import abi
from optpolined.kernel.module.header import read_header
from optpolined.kernel.module.module_list import (
    MODULE_SYMBOLS_MAX,
    GuestModule,
    read_module_names,
    read_modules,
)
from tests.unit.kernel.fake_guest import HEADER, MODULE_TEXT, FakeGuest, FakeMemory

SIZE = ctypes.sizeof(abi.ModuleLayout)
TEXT = 0xFFFF_FFFF_C050_0000


def entry(
    name: bytes = b"veth", text: int = TEXT, size: int = 0x4000, symbols: int = 69
) -> abi.ModuleLayout:
    raw = (ctypes.c_uint8 * abi.MODULE_NAME_LEN)(*name)
    return abi.ModuleLayout(
        name=raw,
        text=text,
        text_size=size,
        symtab=TEXT + 0x8000,
        strtab=TEXT + 0xA000,
        nr_symbols=symbols,
    )


def guest_with(*entries: abi.ModuleLayout, count: int | None = None) -> FakeGuest:
    guest = FakeGuest()
    guest.raw.modules_count = len(entries) if count is None else count
    guest.publish()
    guest.kernel.write(guest.raw.modules, b"".join(map(bytes, entries)))
    return guest


def read(*entries: abi.ModuleLayout, count: int | None = None) -> list[GuestModule]:
    guest = guest_with(*entries, count=count)
    return read_modules(guest.space, read_header(guest.space, HEADER))


def test_modules_come_in_the_order_of_their_addresses() -> None:
    found = read(entry(), entry(b"dummy", MODULE_TEXT))
    assert [module.name for module in found] == ["dummy", "veth"]
    text = GuestVirtual(TEXT)
    assert found[1] == GuestModule(
        "veth", text, 0x4000, GuestVirtual(text + 0x8000), GuestVirtual(text + 0xA000), 69
    )
    assert read() == []


def test_a_module_that_comes_is_known_by_its_name() -> None:
    coming = (entry(b"lkrg", text=0, size=0), entry())
    guest = guest_with(*coming)
    assert read_module_names(guest.space, read_header(guest.space, HEADER)) == ["lkrg", "veth"]
    assert [module.name for module in read(*coming)] == ["veth"]


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"", ""),
        (b"a\nb\x1b[31m\xff\0c", "a?b??31m?"),
        (b"x" * 56, "x" * 56),
        (b"nf_conntrack-1.2", "nf_conntrack-1.2"),
    ],
)
def test_names_are_fit_to_print(raw: bytes, name: str) -> None:
    assert read(entry(raw))[0].name == name


@pytest.mark.parametrize(
    ("text", "size"),
    [(0x40_0000, 4096), (0xFFFF_8880_0000_0000, 4096), (TEXT, 0), (TEXT, 1 << 60), (2**64 - 1, 2)],
)
def test_text_that_makes_no_sense_leaves_a_module_out(text: int, size: int) -> None:
    assert [module.name for module in read(entry(text=text, size=size), entry())] == ["veth"]


def test_the_number_of_symbols_is_bounded() -> None:
    assert read(entry(symbols=2**32 - 1))[0].nr_symbols == MODULE_SYMBOLS_MAX


def test_more_modules_than_the_table_holds() -> None:
    with pytest.raises(HeaderError, match="modules_count"):
        read(count=65)


def test_a_table_that_is_not_mapped() -> None:
    guest = FakeGuest()
    guest.raw.modules = 0xFFFF_8000_0000_0000
    guest.raw.modules_count = 1
    guest.publish()
    with pytest.raises(ModuleListError, match="not mapped"):
        read_modules(guest.space, read_header(guest.space, HEADER))


class ChangingMemory(FakeMemory):
    """Counts a module more each time the header is read."""

    def read(self, address: GuestPhysical, size: int) -> bytes:
        data = super().read(address, size)
        if address == 0x40_0000:
            raw = abi.HeaderLayout.from_buffer_copy(data)
            raw.modules_generation += 1
            self.write(address, bytes(raw))
        return data


def test_a_table_that_changes_while_it_is_read() -> None:
    guest = FakeGuest()
    header = read_header(guest.space, HEADER)
    guest.memory.__class__ = ChangingMemory
    with pytest.raises(ModuleListError, match="changed"):
        read_modules(guest.space, header)


def test_a_module_that_was_unloaded() -> None:
    guest = FakeGuest()
    header = read_header(guest.space, HEADER)
    guest.memory.write(0x40_0000, bytes(16))
    with pytest.raises(ModuleGoneError):
        read_modules(guest.space, header)


@settings(deadline=None)
@given(garbage=st.binary(max_size=4 * SIZE), count=st.integers(0, 64) | st.integers(0, 2**32 - 1))
def test_any_table_is_refused_or_bounded(garbage: bytes, count: int) -> None:
    entries = [
        abi.ModuleLayout.from_buffer_copy(garbage, start)
        for start in range(0, len(garbage) - SIZE + 1, SIZE)
    ]
    try:
        modules = read(*entries, count=count)
    except KernelError:
        return
    assert len(modules) <= 64
    for module in modules:
        assert module.text >= 2**64 - 2**31
        assert module.text + module.size <= 2**64
        assert module.nr_symbols <= MODULE_SYMBOLS_MAX
        assert module.name.isprintable()
