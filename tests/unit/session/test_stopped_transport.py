"""The stopped transport, over memory made of bytes."""

from collections.abc import Iterator, Sequence

import pytest

from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.patching.protocol.steps import Write
from optpolined.patching.protocol.transport import UNMAPPED, WRITTEN, Differs
from optpolined.session.transport.stopped import StoppedTransport
from optpolined.session.transport.stops import Stopper
from tests.unit.kernel.fake_guest import KERNEL_TEXT, FakeMemory, PageTables

TEXT_PAGES = 16
OLD, NEW = b"\xe8\x01\x02\x03\x04", b"\xe8\x05\x06\x07\x08"


class Stub:
    """Counts the stops and writes; time passes by ``seconds_a_write``."""

    def __init__(self, memory: FakeMemory) -> None:
        self.memory = memory
        self.now = 0.0
        self.seconds_a_write = 1e-6
        self.running = True
        self.paused_by_other = False
        self.writes: list[tuple[GuestPhysical, bytes]] = []
        self.writes_of_stops: list[int] = []

    def stop(self) -> bool:
        assert self.running or self.paused_by_other
        self.writes_of_stops.append(0)
        self.running = False
        return not self.paused_by_other

    def resume(self) -> None:
        self.running = not self.paused_by_other

    def write(self, writes: Sequence[tuple[GuestPhysical, bytes]]) -> None:
        assert not self.running
        for address, data in writes:
            self.memory.write(address, data)
            self.now += self.seconds_a_write
        self.writes += writes
        self.writes_of_stops[-1] += len(writes)

    def clock(self) -> float:
        return self.now


@pytest.fixture
def tables() -> PageTables:
    tables = PageTables(FakeMemory())
    tables.map_range(KERNEL_TEXT, 0x200_0000, TEXT_PAGES * 4096, flags=0)
    return tables


@pytest.fixture
def stub(tables: PageTables) -> Iterator[Stub]:
    stub = Stub(tables.memory)
    yield stub
    assert stub.running or stub.paused_by_other


def over(stub: Stub, tables: PageTables, *, budget_seconds: float = 1e-3) -> StoppedTransport:
    return StoppedTransport(
        stopper=Stopper(stub, stub.clock),
        writer=stub,
        memory=tables.memory,
        space=tables.space,
        budget_seconds=budget_seconds,
        clock=stub.clock,
    )


def write_at(address: int) -> Write:
    return Write(GuestVirtual(address), OLD, NEW)


def test_a_write_over_the_expected_bytes_is_made(stub: Stub, tables: PageTables) -> None:
    tables.write(KERNEL_TEXT + 100, OLD)
    assert over(stub, tables).write([write_at(KERNEL_TEXT + 100)]) == [WRITTEN]
    assert tables.space.read(GuestVirtual(KERNEL_TEXT + 100), 5) == NEW


def test_other_bytes_are_reported_and_left_alone(stub: Stub, tables: PageTables) -> None:
    tables.write(KERNEL_TEXT + 100, b"\xcc" + OLD[1:])
    outcomes = over(stub, tables).write([write_at(KERNEL_TEXT + 100)])
    assert outcomes == [Differs(b"\xcc" + OLD[1:])]
    assert stub.writes == []


def test_an_unmapped_address_is_reported(stub: Stub, tables: PageTables) -> None:
    assert over(stub, tables).write([write_at(KERNEL_TEXT + TEXT_PAGES * 4096)]) == [UNMAPPED]


def test_an_instruction_across_two_pages_is_written_to_both(stub: Stub, tables: PageTables) -> None:
    tables.map(KERNEL_TEXT + 4096, 0x300_0000, flags=0)  # not next to the first in physical memory
    tables.write(KERNEL_TEXT + 4094, OLD)
    assert over(stub, tables).write([write_at(KERNEL_TEXT + 4094)]) == [WRITTEN]
    assert tables.space.read(GuestVirtual(KERNEL_TEXT + 4094), 5) == NEW
    assert stub.writes_of_stops == [2]


def test_close_writes_share_a_packet_and_keep_what_is_between(
    stub: Stub, tables: PageTables
) -> None:
    tables.write(KERNEL_TEXT, OLD + b"between" + OLD)
    writes = [write_at(KERNEL_TEXT), write_at(KERNEL_TEXT + 12)]
    assert over(stub, tables).write(writes) == [WRITTEN] * 2
    assert len(stub.writes) == 1
    assert tables.space.read(KERNEL_TEXT, 17) == NEW + b"between" + NEW


def test_a_long_batch_is_cut_into_stops_within_the_budget(stub: Stub, tables: PageTables) -> None:
    addresses = [KERNEL_TEXT + 128 * number for number in range(400)]
    for address in addresses:
        tables.write(address, OLD)
    stub.seconds_a_write = 1e-5
    budget = 1e-3
    assert over(stub, tables, budget_seconds=budget).write(
        [write_at(address) for address in addresses]
    ) == [WRITTEN] * len(addresses)
    assert len(stub.writes_of_stops) > 4
    assert max(stub.writes_of_stops) * stub.seconds_a_write <= budget


def test_a_stop_makes_progress_however_small_the_budget(stub: Stub, tables: PageTables) -> None:
    addresses = [KERNEL_TEXT + 128 * number for number in range(100)]
    for address in addresses:
        tables.write(address, OLD)
    stub.seconds_a_write = 1.0
    outcomes = over(stub, tables).write([write_at(address) for address in addresses])
    assert outcomes == [WRITTEN] * 100


def test_a_guest_that_the_operator_paused_stays_paused(stub: Stub, tables: PageTables) -> None:
    tables.write(KERNEL_TEXT, OLD)
    stub.running, stub.paused_by_other = False, True
    assert over(stub, tables).write([write_at(KERNEL_TEXT)]) == [WRITTEN]
    assert not stub.running


def test_a_write_that_does_not_read_back_counts_as_refused(
    stub: Stub, tables: PageTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.write(KERNEL_TEXT, OLD)
    monkeypatch.setattr(stub, "write", lambda _writes: None)
    assert over(stub, tables).write([write_at(KERNEL_TEXT)]) == [Differs(OLD)]


class Remapping(Stub):
    """Lets the guest move a page to other memory at each of the first stops."""

    def __init__(self, tables: PageTables, address: int, places: Sequence[int]) -> None:
        super().__init__(tables.memory)
        self._tables = tables
        self._address = address
        self._places = list(places)

    def stop(self) -> bool:
        if self._places:
            self._tables.map(self._address, self._places.pop(0), flags=0)
        return super().stop()


@pytest.mark.parametrize("times", [1, 2, 10])
def test_a_page_that_is_remapped_after_preparing_is_not_written_where_it_was(
    tables: PageTables, times: int
) -> None:
    place = [0x300_0000 + 0x1000 * number for number in range(times)]
    for start in (0x200_0000, *place):
        tables.memory.write(GuestPhysical(start + 100), OLD)
    stub = Remapping(tables, KERNEL_TEXT, place)
    assert over(stub, tables).write([write_at(KERNEL_TEXT + 100)]) == [WRITTEN]
    assert tables.space.read(GuestVirtual(KERNEL_TEXT + 100), 5) == NEW
    assert tables.memory.read(GuestPhysical(0x200_0000 + 100), 5) == OLD
    assert len(stub.writes) == 1


def test_a_page_that_goes_after_preparing_is_reported(tables: PageTables) -> None:
    tables.write(KERNEL_TEXT + 100, OLD)
    entry = tables.entry(KERNEL_TEXT)

    class Unmapping(Stub):
        def stop(self) -> bool:
            tables.memory.write(entry, bytes(8))
            return super().stop()

    stub = Unmapping(tables.memory)
    assert over(stub, tables).write([write_at(KERNEL_TEXT + 100)]) == [UNMAPPED]
    assert tables.memory.read(GuestPhysical(0x200_0000 + 100), 5) == OLD


def test_bytes_that_change_after_preparing_are_left_alone(tables: PageTables) -> None:
    for offset in (100, 110):
        tables.write(KERNEL_TEXT + offset, OLD)

    class Meddling(Stub):
        def stop(self) -> bool:
            tables.write(KERNEL_TEXT + 100, b"\xcc")
            return super().stop()

    outcomes = over(Meddling(tables.memory), tables).write(
        [write_at(KERNEL_TEXT + 100), write_at(KERNEL_TEXT + 110)]
    )
    assert outcomes == [Differs(b"\xcc" + OLD[1:]), WRITTEN]
    assert tables.space.read(GuestVirtual(KERNEL_TEXT + 100), 5) == b"\xcc" + OLD[1:]
    assert tables.space.read(GuestVirtual(KERNEL_TEXT + 110), 5) == NEW
