"""Where the guest's RAM is, and how it is read."""

import mmap
import os
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestPhysical, HostVirtual
from optpolined.qemu.errors import (
    MemoryMapError,
    OutOfRamError,
    ProcessGoneError,
    ResumedError,
)
from optpolined.qemu.memory import (
    ProcessMemory,
    RamRange,
    StubMemory,
    is_mapped,
    ram_ranges,
)

# QEMU 7.2, q35, 4608 MiB, without some of the I/O; "\r\n" as HMP has it.
MTREE = """FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, ram): not-memory

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-00000000000bffff (prio 0, ram): pc.ram
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom
  00000000000e0000-00000000000fffff (prio 0, rom): pc.bios @0000000000020000
  0000000000100000-000000007fffffff (prio 0, ram): pc.ram @0000000000100000
  00000000fd000000-00000000fdffffff (prio 1, ramd): vfio
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  00000000fee00000-00000000feefffff (prio 4096, i/o): apic-msi
  00000000fff00000-00000000ffffffff (prio 0, romd): system.flash0
  0000000100000000-000000019fffffff (prio 0, ram): pc.ram @0000000080000000 KVM

FlatView #2
 AS "ich9-ahci", root: bus master container
 Root memory region: bus master container
  No rendered FlatView

""".replace("\n", "\r\n")

HOST = 0x7F00_0000_0000


class Hmp:
    """HMP of a guest with RAM at ``HOST + offset``, in one piece of host memory."""

    def __init__(self, mtree: str = MTREE, gap: int = 0x8000_0000) -> None:
        self.mtree = mtree
        self.gap = gap
        self.holes: set[int] = set()

    def hmp(self, line: str) -> str:
        if line == "info mtree -f":
            return self.mtree
        command, text = line.split()
        assert command == "gpa2hva"
        address = int(text, 16)
        if address in self.holes:
            return f"No memory is mapped at address 0x{address:x}\r\n"
        offset = address if address < 1 << 32 else address - self.gap
        return f"Host virtual address for 0x{address:x} (pc.ram) is 0x{HOST + offset:x}\r\n"


def spans(monitor: Hmp) -> list[tuple[int, int, int]]:
    return [(item.start, item.end, item.host) for item in ram_ranges(monitor)]


def test_ram_on_both_sides_of_the_pci_hole_is_found() -> None:
    assert spans(Hmp()) == [
        (0, 0xC0000, HOST),
        (0x10_0000, 0x8000_0000, HOST + 0x10_0000),
        (0x1_0000_0000, 0x1_A000_0000, HOST + 0x8000_0000),
    ]


@pytest.mark.parametrize("hole", [0x10_0000, 0x7FFF_FFFF])
def test_ram_that_has_gone_meanwhile_is_left_out(hole: int) -> None:
    monitor = Hmp()
    monitor.holes.add(hole)
    assert [start for start, _, _ in spans(monitor)] == [0, 0x1_0000_0000]


@pytest.mark.parametrize("text", ["", "unknown command: 'info'\r\n", MTREE.replace("ram)", "i/o)")])
def test_a_guest_without_ram_is_an_error(text: str) -> None:
    with pytest.raises(MemoryMapError, match="no RAM"):
        ram_ranges(Hmp(text))


def test_a_list_out_of_order_is_an_error() -> None:
    with pytest.raises(MemoryMapError, match="order"):
        ram_ranges(Hmp(MTREE.replace("0000000000100000-", "0000000000000000-")))


def test_a_list_without_end_is_an_error() -> None:
    line = "  %016x-%016x (prio 0, ram): pc.ram\r\n"
    many = "".join(line % (at, at + 0xFFF) for at in range(0, 5000 << 12, 4096))
    with pytest.raises(MemoryMapError, match="4096"):
        ram_ranges(Hmp('FlatView #0\r\n AS "memory", root: system\r\n' + many))


def test_a_range_beyond_physical_memory_is_clipped() -> None:
    text = (
        'FlatView #0\r\n AS "memory", root: system\r\n'
        "  0000000000000000-ffffffffffffffff (prio 0, ram): pc.ram\r\n"
    )
    monitor = Hmp(text, gap=0)
    monitor.holes = set()
    with pytest.raises(MemoryMapError):  # no process has 2**52 bytes at an address of user space
        ram_ranges(Hmp(text.replace("0000000000000000-", "0010000000000000-")))
    assert spans(monitor) == [(0, 1 << 52, HOST)]


@given(st.text(max_size=300))
@settings(deadline=None)
def test_any_text_gives_ranges_or_a_named_error(text: str) -> None:
    with pytest.raises(MemoryMapError):
        ram_ranges(Hmp('FlatView #0\n AS "memory", root: system\n' + text))


# Reading a process: this one

PAGES = 16
SIZE = PAGES * mmap.PAGESIZE


class Self:
    pid = os.getpid()


@pytest.fixture
def buffer() -> Iterator[tuple[mmap.mmap, HostVirtual]]:
    """Memory of this process, its contents and its address."""
    import ctypes

    memory = mmap.mmap(-1, SIZE)
    memory[:] = os.urandom(SIZE)
    view = ctypes.c_char.from_buffer(memory)
    address = HostVirtual(ctypes.addressof(view))
    del view
    yield memory, address
    memory.close()


def two_ranges(host: HostVirtual) -> list[RamRange]:
    """The halves of the buffer, adjacent in the guest but swapped; a hole; and the whole."""
    half = SIZE // 2
    return [
        RamRange(GuestPhysical(0), half, HostVirtual(host + half)),
        RamRange(GuestPhysical(half), half, host),
        RamRange(GuestPhysical(1 << 32), SIZE, host),
    ]


def test_reads_cross_ranges_and_stop_at_holes(buffer: tuple[mmap.mmap, HostVirtual]) -> None:
    contents, host = buffer
    half = SIZE // 2
    memory = ProcessMemory(Self(), two_ranges(host))
    assert memory.read(GuestPhysical(1 << 32), SIZE) == contents[:]
    assert memory.read(GuestPhysical(0), SIZE) == contents[half:] + contents[:half]
    assert memory.read(GuestPhysical(half - 3), 6) == contents[-3:] + contents[:3]
    assert memory.read(GuestPhysical(5), 0) == b""
    for address, size in ((SIZE - 1, 2), (SIZE, 1), ((1 << 32) - 1, 2), (-1, 1), (0, -1)):
        with pytest.raises(OutOfRamError):
            memory.read(GuestPhysical(address), size)
    with pytest.raises(OutOfRamError):
        memory.read(GuestPhysical(0), 1 << 60)
    memory.close()
    memory.close()


def test_ranges_that_the_process_does_not_have_are_refused(
    buffer: tuple[mmap.mmap, HostVirtual],
) -> None:
    _, host = buffer
    assert is_mapped(os.getpid(), two_ranges(host))
    absent = [RamRange(GuestPhysical(0), SIZE, HostVirtual(0x1000))]
    assert not is_mapped(os.getpid(), absent)
    with pytest.raises(MemoryMapError, match="mapped"):
        ProcessMemory(Self(), absent)


def test_a_process_that_is_gone_is_told(buffer: tuple[mmap.mmap, HostVirtual]) -> None:
    _, host = buffer
    child = os.fork()
    if not child:
        os._exit(0)

    class Child:
        pid = child

    os.waitpid(child, 0)
    with pytest.raises(ProcessGoneError):
        ProcessMemory(Child(), two_ranges(host))


# Reading through stops


class Stub:
    """A stub over plain bytes, which notes its stops; fails the reads that it is told to."""

    def __init__(self, contents: bytes) -> None:
        self.contents = contents
        self.in_stop = False
        self.stops: list[int] = []
        self.fails = False

    def stop(self) -> bool:
        self.in_stop = True
        self.stops.append(0)
        return True

    def resume(self) -> None:
        self.in_stop = False

    def read(self, requests: Sequence[tuple[GuestPhysical, int]]) -> list[bytes]:
        assert self.in_stop
        if self.fails:
            raise ResumedError("again")
        if self.stops:
            self.stops[-1] += sum(size for _, size in requests)
        return [self.contents[at : at + size] for at, size in requests]


CONTENTS = os.urandom(100_000)
RANGES = [
    RamRange(GuestPhysical(0), 50_000, HostVirtual(0x1000)),
    RamRange(GuestPhysical(50_000), 40_000, HostVirtual(0x100000)),
]


def test_reads_outside_a_stop_make_short_stops_of_their_own() -> None:
    stub = Stub(CONTENTS)
    memory = StubMemory(stub, RANGES)
    assert memory.read(GuestPhysical(10), 80_000) == CONTENTS[10:80_010]
    assert max(stub.stops) <= 0x4000
    assert not stub.in_stop


def test_reads_inside_a_stop_make_none() -> None:
    stub = Stub(CONTENTS)
    stub.in_stop = True
    assert StubMemory(stub, RANGES).read(GuestPhysical(10), 80_000) == CONTENTS[10:80_010]
    assert stub.stops == []
    assert stub.in_stop


def test_what_is_not_ram_is_not_asked_for() -> None:
    stub = Stub(CONTENTS)
    with pytest.raises(OutOfRamError):
        StubMemory(stub, RANGES).read(GuestPhysical(89_999), 2)
    assert stub.stops == []


def test_a_failed_read_ends_its_stop() -> None:
    stub = Stub(CONTENTS)
    stub.fails = True
    with pytest.raises(ResumedError):
        StubMemory(stub, RANGES).read(GuestPhysical(0), 2)
    assert not stub.in_stop
