import contextlib
import ctypes
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.kernel.errors import (
    AbiMismatchError,
    AttachError,
    HeaderError,
    ModuleGoneError,
    ModuleMissingError,
    PagingOffError,
    VmcoreinfoError,
)
from optpolined.kernel.module import abi
from optpolined.kernel.module.attachment import Root, attach, find_header, read_status, roots
from optpolined.kernel.module.header import HEADER_SIZE, parse_header
from optpolined.kernel.vmcoreinfo import parse_vmcoreinfo, read_vmcoreinfo
from optpolined.qemu.errors import HmpFormatError
from optpolined.x86 import Register
from tests.unit.kernel.fake_guest import (
    HEADER,
    MODULE_TEXT,
    NO_EXECUTE,
    TABLES,
    WRITABLE,
    FakeGuest,
    FakeMemory,
    note,
    raw_header,
    registers,
)


def test_each_raw_root_comes_before_that_of_the_kernel_half() -> None:
    text = registers(0x8000_0001_2345_1ABC, 0x5000, 0x5000)
    assert roots(text) == [
        Root(GuestPhysical(0x1_2345_1000), 4),
        Root(GuestPhysical(0x1_2345_0000), 4),
        Root(GuestPhysical(0x5000), 4),
        Root(GuestPhysical(0x4000), 4),
    ]
    assert len(roots(registers(*range(0, 1 << 20, 4096)))) == 32
    assert roots(registers(0x4000, cr4=0x1000)) == [Root(GuestPhysical(0x4000), 5)]


@pytest.mark.parametrize(
    "text",
    [registers(0x4000, cr0=0x33), registers(0x4000, efer=0x100)],
)
def test_no_vcpu_with_paging(text: str) -> None:
    assert roots(text) == []
    with pytest.raises(PagingOffError, match="booted"):
        find_header(FakeMemory(), text)


@settings(deadline=None)
@given(text=st.text(alphabet="CRPUEFER#0134=aQ \n", max_size=200))
def test_any_text_gives_roots_or_a_named_error(text: str) -> None:
    with contextlib.suppress(HmpFormatError):
        for root in roots(text):
            assert root.address % 4096 == 0


@pytest.mark.parametrize("levels", [4, 5])
def test_attach_ends_on_the_kernels_own_tables(levels: int) -> None:
    guest = FakeGuest(levels)
    text = registers(guest.process.root, cr4=0x6F0 | (levels == 5) << 12)
    attachment = attach(guest.memory, text)
    assert (attachment.space.root, attachment.space.levels) == (guest.kernel.root, levels)
    assert attachment.vmcoreinfo.osrelease == "6.1.0-56-cloud-amd64"
    header = attachment.header
    assert (header.address, header.boot_nonce) == (HEADER, 0x1122_3344_5566_7788)
    assert header.learn_stub[Register.R15] == MODULE_TEXT + 15 * 128
    assert Register.RSP not in header.thunk
    # The process has ended.
    guest.memory.write(guest.process.root, bytes(4096))
    assert not read_status(attachment.space, header).held


def test_a_vcpu_in_user_mode_with_page_table_isolation() -> None:
    guest = FakeGuest()
    assert guest.process.root & 0x1000 == 0
    guest.memory.write(guest.process.root | 0x1000, bytes(4096))
    text = registers(guest.process.root | 0x1000)
    assert find_header(guest.memory, text).address == HEADER


def test_a_false_magic_is_passed_over() -> None:
    guest = FakeGuest()
    for number in range(3):
        guest.process.map(HEADER - 4096 * (number + 1), 0x41_0000 + 4096 * number, WRITABLE)
    guest.memory.write(0x41_0000, abi.MAGIC)
    guest.memory.write(0x41_1000, bytes(guest.raw))
    guest.memory.write(0x41_2000, b"optpoline-Header")
    assert find_header(guest.memory, registers(guest.process.root)).address == HEADER


def test_a_header_on_a_page_of_another_kind_is_found_too() -> None:
    guest = FakeGuest()
    guest.process.map(HEADER, 0x40_0000, 0)
    assert find_header(guest.memory, registers(guest.process.root)).address == HEADER


def test_no_module_says_how_to_load_it() -> None:
    guest = FakeGuest()
    guest.process.map(HEADER, 0x42_0000, WRITABLE | NO_EXECUTE)
    guest.process.map(HEADER + 4096, 1 << 50, WRITABLE | NO_EXECUTE)
    with pytest.raises(ModuleMissingError, match=r"modprobe optpoline.*insmod"):
        attach(guest.memory, registers(guest.process.root))


def test_another_abi_names_both_versions() -> None:
    guest = FakeGuest()
    guest.raw.abi_version = 7
    guest.raw.header_size = 9999
    guest.publish()
    with pytest.raises(AbiMismatchError, match=rf"version 7.*version {abi.ABI_VERSION}:") as caught:
        attach(guest.memory, registers(guest.process.root))
    assert (caught.value.found, caught.value.ours) == (7, abi.ABI_VERSION)


BAD_FIELDS: dict[str, list[int]] = {
    "header_size": [0, 439, 441],
    "vmcoreinfo_paddr": [1 << 52],
    "vmcoreinfo_size": [0, 65537, 2**64 - 1],
    "module_text": [0, 0x40_0000, 0xFFFF_8880_0000_0000, 2**64 - 4096],
    "module_text_size": [0, 1 << 40],
    "arena": [0, MODULE_TEXT - 32, MODULE_TEXT + 0x3001, MODULE_TEXT + 0x4000],
    "arena_size": [0, 4095, (256 << 20) + 1, 2**64 - 1],
    "poke_table": [0, TABLES + 1, 2**64 - 8],
    "poke_order": [7, 18, 2**32 - 1],
    "poke_entry_size": [0, 64],
    "per_cpu_offset": [0, 0x1000, 2**64 - 8, TABLES + 4],
    "nr_cpu_ids": [0, 8193],
    "nr_record_chunks": [0, 129],
    "record_chunks": [0, TABLES + 1],
    "records_per_chunk": [0, 1024],
    "record_size": [0, 128],
    "cpu_stats": [4],
    "census_chunks": [0, 0x1000, TABLES + 0x1_1004, 2**64 - 8],
    "nr_census_chunks": [0, 65, 2**32 - 1],
    "census_chunk_slots": [0, 2049, 2**32 - 1],
    "census_other": [4, 2**64 - 1],
    "modules": [0, 2**64 - 8],
    "modules_capacity": [0, 65537],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, bad in BAD_FIELDS.items() for value in bad]
)
def test_a_field_that_makes_no_sense_is_named(field: str, value: int) -> None:
    raw = raw_header()
    setattr(raw, field, value)
    with pytest.raises(HeaderError, match="header has") as caught:
        parse_header(bytes(raw), HEADER)
    related = {"module_text": "arena", "module_text_size": "arena"}
    assert caught.value.field in (field, related.get(field))


@pytest.mark.parametrize("table", ["thunk", "learn_stub", "census_stub"])
def test_each_register_has_its_thunk_and_stub(table: str) -> None:
    wrong = 2**64 - 4 if table == "thunk" else MODULE_TEXT - 1  # a head has five bytes
    for value in (0, 1, 0xFFFF_8880_0000_0000, wrong):
        raw = raw_header()
        getattr(raw, table)[Register.R9] = value
        with pytest.raises(HeaderError) as caught:
            parse_header(bytes(raw), HEADER)
        assert caught.value.field == f"{table}[r9]"


@settings(deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(16, HEADER_SIZE - 8), st.integers(0, 2**64 - 1)), min_size=1
    )
)
def test_a_garbled_header_is_refused_or_bounded(changes: list[tuple[int, int]]) -> None:
    data = bytearray(bytes(raw_header()))
    for offset, value in changes:
        data[offset : offset + 8] = value.to_bytes(8, "little")
    try:
        header = parse_header(bytes(data), HEADER)
    except (AbiMismatchError, HeaderError):
        return
    assert 1 << 12 <= header.arena_size <= 256 << 20
    assert header.module_text <= header.arena
    assert header.arena + header.arena_size <= header.module_text + header.module_text_size <= 2**64
    assert header.nr_cpu_ids <= 8192
    assert header.nr_record_chunks <= 128
    assert header.nr_census_chunks * header.census_chunk_slots <= 64 * 2048
    assert set(map(len, header.thunk_head.values())) == {5}
    assert header.modules_capacity <= 65536


def test_fields_by_address() -> None:
    header = parse_header(bytes(raw_header()), HEADER)
    assert header.field("request_op") == HEADER + ctypes.sizeof(abi.HeaderLayout) - 16


def test_status_is_read_anew_and_tells_when_the_module_has_gone() -> None:
    guest = FakeGuest()
    header = find_header(guest.memory, registers(guest.process.root))
    guest.raw.held = 1
    guest.raw.modules_generation = 9
    guest.raw.request_result = -22
    guest.publish()
    status = read_status(guest.space, header)
    assert (status.held, status.modules_generation, status.request_result) == (True, 9, -22)

    guest.raw.modules_count = header.modules_capacity + 1
    guest.publish()
    with pytest.raises(HeaderError, match="modules_count"):
        read_status(guest.space, header)

    guest.raw.boot_nonce += 1
    guest.publish()
    with pytest.raises(ModuleGoneError):
        read_status(guest.space, header)
    guest.memory.write(guest.kernel.root, bytes(4096))
    with pytest.raises(ModuleGoneError):
        read_status(guest.space, header)


def _no_root(guest: FakeGuest) -> None:
    guest.text = guest.text.replace(b"NUMBER(phys_base)", b"NUMBER(phys)")


def _odd_root(guest: FakeGuest) -> None:
    guest.text = guest.text.replace(b"=ffffffff82610000", b"=ffffffff82610008")


def _wrong_root(guest: FakeGuest) -> None:
    guest.text = guest.text.replace(b"=ffffffff82610000", b"=ffffffff82e10000")


def _no_release(guest: FakeGuest) -> None:
    guest.text = guest.text.replace(b"OSRELEASE", b"RELEASE")


def _outside_ram(guest: FakeGuest) -> None:
    guest.raw.vmcoreinfo_paddr = 1 << 45


def _no_note(guest: FakeGuest) -> None:
    guest.raw.vmcoreinfo_paddr = 0x4000


def _cut(guest: FakeGuest) -> None:
    guest.raw.vmcoreinfo_size = 40


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_no_root, "lacks phys_base"),
        (_odd_root, "swapper_pg_dir"),
        (_wrong_root, "do not map the module"),
        (_no_release, "release"),
        (_outside_ram, "not in RAM"),
        (_no_note, "no VMCOREINFO"),
        (_cut, "no VMCOREINFO"),
    ],
)
def test_a_note_that_leads_nowhere(change: Callable[[FakeGuest], None], says: str) -> None:
    guest = FakeGuest()
    change(guest)
    guest.publish()
    with pytest.raises(VmcoreinfoError, match=says):
        attach(guest.memory, registers(guest.process.root))


def test_a_note_too_short_for_its_head() -> None:
    with pytest.raises(VmcoreinfoError, match="short"):
        read_vmcoreinfo(FakeMemory(), GuestPhysical(0), 8)


@settings(deadline=None)
@given(text=st.binary() | st.text(alphabet="SYMBOL()=NUMER_-09af\n").map(str.encode))
def test_any_note_is_refused_or_understood(text: bytes) -> None:
    memory = FakeMemory()
    memory.write(0x8000, note(text))
    try:
        found = read_vmcoreinfo(memory, GuestPhysical(0x8000), 4096)
    except VmcoreinfoError:
        return
    assert found.osrelease.isascii()


def test_symbols_and_numbers_of_a_note() -> None:
    found = parse_vmcoreinfo(b"OSRELEASE=6.1\nSYMBOL(_stext)=ffffffff81000000\nNUMBER(x)=-1\nX\n")
    assert found.symbols == {"_stext": GuestVirtual(0xFFFF_FFFF_8100_0000)}
    assert found.numbers == {"x": -1}
    assert found.levels == 4
    with pytest.raises(VmcoreinfoError, match="swapper_pg_dir"):
        _ = found.root


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"BUILD-ID=0123456789abcdef", "0123456789abcdef"),
        (b"BUILD-ID=01\x1b[2J", ""),
        (b"X-BUILD-ID=0123456789abcdef", ""),
        (b"", ""),
    ],
)
def test_the_build_id_is_hexadecimal_or_nothing(line: bytes, told: str) -> None:
    assert parse_vmcoreinfo(b"OSRELEASE=6.1\n" + line + b"\nX=1\n").build_id == told


@settings(deadline=None)
@given(pages=st.lists(st.binary(min_size=0, max_size=64), max_size=4), levels=st.integers(4, 5))
def test_a_guest_of_garbage_is_not_attached_to(pages: list[bytes], levels: int) -> None:
    memory = FakeMemory()
    for number, page in enumerate(pages):
        memory.write(4096 * number + 8 * 448, page)
    with pytest.raises(AttachError):
        attach(memory, registers(0, cr4=(levels == 5) << 12))
