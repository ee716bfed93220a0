"""The way in: the header, page tables and VMCOREINFO of a guest that lies."""

import ctypes

from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.errors import OptpolinedError
from optpolined.kernel.errors import SymbolsError, VmcoreinfoError
from optpolined.kernel.module import abi
from optpolined.kernel.module.attachment import Attachment, attach, roots
from optpolined.kernel.module.header import Header, parse_header
from optpolined.kernel.paging import AddressSpace
from optpolined.kernel.symbols.kallsyms import load_kallsyms
from optpolined.kernel.vmcoreinfo import parse_vmcoreinfo, read_vmcoreinfo
from optpolined.qemu.errors import HmpFormatError
from tests.hostile.corruptions import WORDS, corruptions, words
from tests.hostile.daemon_work import attached_work, named
from tests.hostile.examples import attack
from tests.hostile.hostile_memory import Change, HostileMemory
from tests.hostile.whole_guest import GUEST
from tests.unit.kernel.fake_guest import HEADER, KERNEL_TEXT, MODULE_TEXT, TABLES, note

ATTACH_READS_MAX = 300_000
"""For each of the two roots: the module area has 258,048 pages."""

FIELDS = [
    (getattr(abi.HeaderLayout, name).offset + place, 4 if kind is ctypes.c_uint32 else 8)
    for name, kind in abi.HeaderLayout._fields_
    if name != "magic"
    for place in range(0, ctypes.sizeof(kind), 8)
]


def _garbled(changes: list[tuple[tuple[int, int], int]]) -> bytes:
    data = bytearray(bytes(GUEST.raw))
    for (offset, size), value in changes:
        data[offset : offset + size] = (value % (1 << (8 * size))).to_bytes(size, "little")
    return bytes(data)


fields = st.lists(st.tuples(st.sampled_from(FIELDS), words), min_size=1, max_size=3).map(_garbled)


@given(data=fields)
@attack("header", share=0.5)
def test_every_field_may_hold_anything(data: bytes) -> None:
    header: Header | None = None
    with named():
        header = parse_header(data, HEADER)
    if header is not None:
        region = GUEST.regions["header"]
        memory = HostileMemory([Change(0, region.physical, data)], reads_max=200_000)
        known = GUEST.attachment(memory)
        attached_work(Attachment(header, known.space, known.vmcoreinfo), memory, still=True)


@given(changes=corruptions("header", "root", moving=True, last=60))
@attack("header", share=0.5)
def test_a_header_that_changes_as_it_is_looked_for(changes: list[Change]) -> None:
    memory = HostileMemory(changes, reads_max=2 * ATTACH_READS_MAX)
    with named():
        attach(memory, GUEST.registers)


ADDRESSES = (
    *(HEADER, KERNEL_TEXT, MODULE_TEXT, TABLES, GUEST.raw.per_cpu_offset),
    *(0, (1 << 47) - 8, 1 << 47, (1 << 64) - 8, (1 << 64) - (1 << 47)),
)


@given(
    changes=corruptions("paging", "root", moving=True, most=12, last=40),
    base=st.sampled_from(ADDRESSES),
    offset=st.integers(0, 1 << 21),
    levels=st.sampled_from((4, 5)),
    root=st.sampled_from((0x10_0000, 0x10_2000, 0x20_0000, 1 << 45)),
)
@attack("page tables", share=0.5)
def test_tables_of_anything_translate_to_ram_or_not_at_all(
    changes: list[Change], base: int, offset: int, levels: int, root: int
) -> None:
    memory = HostileMemory(changes, reads_max=2000)
    space = AddressSpace(memory, GuestPhysical(root), levels)
    address = GuestVirtual((base + offset) % (1 << 64))
    with space.snapshot() as pages:
        for reader in (space, pages):
            with named():
                assert 0 <= reader.translate(address) < 1 << 52
            with named():
                pieces = reader.pieces(address, 9000)
                assert sum(size for _, size in pieces) == 9000
                assert len(pieces) <= 4
            with named():
                assert len(reader.read(address, 9000)) == 9000
    end = GuestVirtual(min(address + (1 << 22), 1 << 64))
    assert sum(page.size for page in space.mapped(address, end)) <= end - address


@given(changes=corruptions("paging", "root", most=3))
@attack("page tables", share=0.5)
def test_tables_that_lead_the_search_astray(changes: list[Change]) -> None:
    memory = HostileMemory(changes, reads_max=2 * ATTACH_READS_MAX)
    with named():
        attach(memory, GUEST.registers)


LINES = GUEST.vmcoreinfo.text.splitlines()
KEYS = [line.partition(b"=")[0] for line in LINES] + [
    *(b"BUILD-ID", b"CRASHTIME", b"KERNELOFFSET", b"KERNELOFFPHYS", b"LENGTH(mem_section)"),
    *(b"NUMBER(SECTION_SIZE_BITS)", b"NUMBER(MAX_PHYSMEM_BITS)", b"NUMBER(KERNELPACMASK)"),
    *(b"SYMBOL(kallsyms_addresses)", b"SYMBOL(init_uts_ns)", b"CONFIG_ARM_LPAE", b""),
]

values = st.one_of(
    words.map(lambda word: b"%x" % word),
    words.map(lambda word: b"%d" % word),
    words.map(lambda word: b"-%d" % word),
    st.sampled_from((b"", b"0", b"4096", b"6.1", b"7.0.0", b"5.19", b"9" * 64, b"f" * 300)),
    st.binary(max_size=16),
)
lines = (
    st.tuples(st.sampled_from(KEYS), values).map(b"=".join)
    | st.sampled_from(LINES)
    | st.binary(max_size=40)
)


@st.composite
def notes(draw: st.DrawFn) -> bytes:
    """The guest's own lines, some left out or changed, and others between."""
    kept = list(LINES)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(kept)))
        kept[place : place + draw(st.integers(0, 1))] = draw(st.lists(lines, max_size=2))
    return b"\n".join(kept) + draw(st.sampled_from((b"\n", b"", b"\0", b"\xff\n")))


@given(text=notes())
@attack("vmcoreinfo", share=0.75)
def test_any_vmcoreinfo_gives_symbols_or_an_error(text: bytes) -> None:
    space = GUEST.attachment(HostileMemory(())).space
    try:
        symbols = load_kallsyms(space, parse_vmcoreinfo(text))
    except (SymbolsError, VmcoreinfoError):
        return
    assert all(name.isascii() and name.isprintable() for _, name in symbols)


@given(
    changes=corruptions("note", moving=True, last=3),
    size=st.integers(0, 70_000) | st.just(len(note(GUEST.vmcoreinfo.text))),
    address=st.just(0x8000) | st.integers(0, 1 << 23) | st.sampled_from(WORDS),
)
@attack("vmcoreinfo", share=0.25)
def test_any_note_is_read_within_its_bounds(changes: list[Change], size: int, address: int) -> None:
    memory = HostileMemory(changes, reads_max=1, bytes_max=1 << 16)
    with named():
        found = read_vmcoreinfo(memory, GuestPhysical(address), size)
        assert found.root % 4096 == 0
        assert found.levels in (4, 5)


registers = st.lists(
    st.sampled_from(("CPU#", "0", "1", "\n", "CR0=80050033", "EFER=d01", " ", "CR3=", "CR4=1000"))
    | st.sampled_from(("CR0=", "CR4=0006f0", "EFER=", "ffffffffffffffff", "g", "٣", "CR3=100000"))
    | st.text(max_size=6),
    max_size=40,
).map("".join)


@given(text=registers)
@attack("registers")
def test_any_answer_to_info_registers_gives_few_roots_or_is_refused(text: str) -> None:
    try:
        found = roots(text)
    except HmpFormatError:
        return
    assert len(found) <= 32
    for root in found:
        assert root.address % 4096 == 0
        assert 0 <= root.address < 1 << 52
        assert root.levels in (4, 5)


def test_garbled_headers_are_seldom_whole() -> None:
    """The attack on the header gets past its checks often enough to mean something."""
    passed = 0
    for field in FIELDS:
        for value in WORDS:
            try:
                parse_header(_garbled([(field, value)]), HEADER)
            except OptpolinedError:
                continue
            passed += 1
    assert 0.05 < passed / (len(FIELDS) * len(WORDS)) < 0.5
