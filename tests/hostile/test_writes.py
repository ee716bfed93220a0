"""Whatever its page tables say, only RAM of the guest is ever written.

The real way down: translation, comparison through /proc/PID/mem, packets over a socket.  The "QEMU
process" is this one, and its gdbstub takes every packet, as QEMU's does: an address that is no RAM
would be a device's register.
"""

import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestPhysical, GuestVirtual, HostVirtual
from optpolined.kernel.errors import TranslationError
from optpolined.kernel.paging import AddressSpace
from optpolined.patching.protocol.steps import Write
from optpolined.qemu.gdbstub import GdbStub
from optpolined.qemu.memory import ProcessMemory, RamRange
from optpolined.session.transport.stopped import StoppedTransport
from optpolined.session.transport.stops import Stopper
from tests.hostile.corruptions import changes_of
from tests.hostile.examples import attack
from tests.hostile.hostile_memory import Change
from tests.hostile.whole_guest import GUEST, RAM_SIZE, Region
from tests.unit.fakes.fake_stub import FakeStub
from tests.unit.kernel.fake_guest import HEADER, KERNEL_TEXT, MODULE_TEXT, TABLES

ROOT: Final = GuestPhysical(0x10_0000)
PAGE: Final = 4096
HIGH: Final = 1 << 32
PACKETS_MAX: Final = 200

EXTENTS: Final = (
    (0, 0xA_0000),
    (0x10_0000, 0x51_0000),
    (0x52_0000, 0x62_0000),
    (HIGH, HIGH + PAGE),
)
"""Start and end of what QEMU names as RAM; the init text at 0x51_0000 is now a hole."""


class Ram:
    """The RAM of the whole guest, but for its holes, in the memory of this process."""

    def __init__(self) -> None:
        self._buffer = mmap.mmap(-1, RAM_SIZE + PAGE)
        self._bytes = (ctypes.c_uint8 * (RAM_SIZE + PAGE)).from_buffer(self._buffer)
        self._buffer[:RAM_SIZE] = GUEST.memory.read(GuestPhysical(0), RAM_SIZE)
        self._before: dict[int, bytes] = {}
        host = ctypes.addressof(self._bytes)
        self.ranges = [
            RamRange(GuestPhysical(start), end - start, HostVirtual(host + self._place(start)))
            for start, end in EXTENTS
        ]

    @property
    def pid(self) -> int:
        return os.getpid()

    @staticmethod
    def holds(address: int, size: int) -> bool:
        return any(start <= address and address + size <= end for start, end in EXTENTS)

    def write(self, address: int, data: bytes) -> None:
        place = self._place(address)
        for page in range(place // PAGE, (place + len(data) - 1) // PAGE + 1):
            self._before.setdefault(page, self._buffer[page * PAGE : (page + 1) * PAGE])
        self._buffer[place : place + len(data)] = data

    def reset(self) -> None:
        for page, before in self._before.items():
            self._buffer[page * PAGE : (page + 1) * PAGE] = before
        self._before.clear()

    @staticmethod
    def _place(address: int) -> int:
        return RAM_SIZE + address - HIGH if address >= HIGH else address


class Stub(FakeStub):
    """QEMU's gdbstub over ``ram``, of a guest that changes its memory before some packets."""

    def __init__(self, path: Path, ram: Ram) -> None:
        super().__init__(path)
        self._ram = ram
        self.begin(())

    def begin(self, changes: Sequence[Change]) -> None:
        """Forget what was; make ``changes`` from now on, each after so many packets."""
        self._ram.reset()
        self.packets.clear()
        self.outside: list[bytes] = []
        self._due = sorted(changes, key=lambda change: change.after, reverse=True)
        self._change()

    def end(self) -> None:
        """Wait until what was received has been done."""
        with self._lock:
            assert self.running
            assert len(self.packets) <= PACKETS_MAX

    def _change(self) -> None:
        while self._due and self._due[-1].after <= len(self.packets):
            change = self._due.pop()
            self._ram.write(change.physical, change.data)

    def _handle(self, line: bytes) -> bytes | None:
        self._change()
        return super()._handle(line)

    def _access(self, line: bytes) -> bytes:
        span, _, payload = line[1:].partition(b":")
        address, size = (int(number, 16) for number in span.split(b","))
        data = bytes.fromhex(payload.decode())
        if not line.startswith(b"M") or size != len(data) or not self._ram.holds(address, size):
            self.outside.append(line)
        else:
            self._ram.write(address, data)
        return b"OK"


RAM: Final = Ram()
MEMORY: Final = ProcessMemory(RAM, RAM.ranges)

# Pages at the edges of RAM and out of it, and flags: writable, large, no-execute.
EDGES: Final = (
    *(0, 0x9_F000, 0xA_0000, 0xF_F000, 0x10_0000, 0x50_F000, 0x51_0000, 0x61_F000, 0x62_0000),
    *(0x20_0000, 0x40_0000, 0x60_0000, 0x4000_0000, HIGH, HIGH + PAGE, 1 << 45, (1 << 52) - PAGE),
)
FLAGS: Final = (1, 3, 0x83, 0x83, 1 << 63 | 3, 0)
TABLE_REGIONS: Final = [Region("paging", ROOT, 0x2_0000), Region("root", ROOT, PAGE)]


def _entries(data: bytes) -> list[Change]:
    """Changes to the entries that translate what is written, from four bytes each."""
    return [
        Change(
            after % 16 if after & 0x80 else 0,
            PLACES[place % len(PLACES)],
            (EDGES[page % len(EDGES)] | FLAGS[flags % len(FLAGS)]).to_bytes(8, "little"),
        )
        for after, place, page, flags in zip(*[iter(data)] * 4, strict=False)
    ]


BASES: Final = (KERNEL_TEXT, MODULE_TEXT, HEADER, TABLES, KERNEL_TEXT + 0x10_0000)


def _entry_places() -> Iterator[int]:
    """The address of each entry that the walks to BASES, and to the page after each, read."""
    for base in BASES:
        for page in (base, base + PAGE):
            table = int(ROOT)
            for shift in (39, 30, 21, 12):
                place = table + 8 * (page >> shift & 511)
                yield place
                table = int.from_bytes(GUEST.memory.read(GuestPhysical(place), 8), "little")
                table &= 0x000F_FFFF_FFFF_F000


PLACES: Final = sorted(set(_entry_places()))


def _places(data: bytes) -> list[tuple[GuestVirtual, int]]:
    """Addresses and sizes of writes, from four bytes each; many cross into the next page."""
    return [
        (
            GuestVirtual(
                BASES[base % len(BASES)] + (PAGE - offset if base & 0x80 else offset | low << 8)
            ),
            1 + size % (32 if base & 0x40 else 7),
        )
        for base, offset, low, size in zip(*[iter(data)] * 4, strict=False)
    ]


def _writes(space: AddressSpace, places: Sequence[tuple[GuestVirtual, int]]) -> list[Write]:
    """Writes that expect what stands there, so that only the addresses can stop them."""
    writes = []
    for number, (address, size) in enumerate(places):
        try:
            found = space.read(address, size)
        except TranslationError:
            found = bytes(size)
        writes.append(Write(address, found, bytes((octet + number + 1) & 0xFF for octet in found)))
    return writes


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stub]:
    with Stub(tmp_path_factory.mktemp("stub") / "gdb", RAM) as stub:
        yield stub


@pytest.fixture(scope="module")
def client(stub: Stub) -> Iterator[GdbStub]:
    with closing(GdbStub.connect(stub.path)) as client:
        yield client


@given(
    entries=st.binary(max_size=24).map(_entries),
    anything=st.binary(min_size=33, max_size=33).map(
        lambda data: changes_of(data, TABLE_REGIONS, 16) if data[0] & 1 else []
    ),
    places=st.binary(min_size=4, max_size=48).map(_places),
)
@attack("writes")
def test_no_packet_writes_outside_the_ram_that_qemu_named(
    stub: Stub,
    client: GdbStub,
    entries: list[Change],
    anything: list[Change],
    places: list[tuple[GuestVirtual, int]],
) -> None:
    stub.begin([*entries, *anything])
    ticks = count()
    space = AddressSpace(MEMORY, ROOT, 4)
    transport = StoppedTransport(
        stopper=Stopper(client, lambda: next(ticks) / 1e4),
        writer=client,
        memory=MEMORY,
        space=space,
        budget_seconds=1e-3,
        clock=lambda: next(ticks) / 1e4,
    )
    writes = _writes(space, places)
    outcomes = transport.write(writes)
    stub.end()
    assert len(outcomes) == len(writes)
    assert stub.outside == []


def test_a_write_outside_of_the_ram_would_be_seen(stub: Stub, client: GdbStub) -> None:
    stub.begin(())
    client.stop()
    client.write([(GuestPhysical(0xA_0000), b"x"), (GuestPhysical(0x9_FFFF), b"xy")])
    client.resume()
    stub.end()
    assert len(stub.outside) == 2
