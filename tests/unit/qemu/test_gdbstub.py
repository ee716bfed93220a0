"""The gdbstub client against a stub that behaves."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestPhysical
from optpolined.qemu.errors import (
    OutOfRamError,
    StubClosedError,
    StubReadError,
    StubStateError,
    StubTimeoutError,
    StubWriteError,
)
from optpolined.qemu.gdbstub import GdbStub
from tests.unit.fakes.fake_stub import FakeStub
from tests.unit.fakes.faults import Faults
from tests.unit.qemu.stub_client import (
    AT,
    GREETING_PACKETS,
    TIMEOUT_SECONDS,
    Flag,
    connected,
    in_time,
    running_soon,
)


def test_connecting_leaves_a_running_guest_running(path: Path) -> None:
    fake = FakeStub(path)
    with connected(fake):
        assert running_soon(fake)
        assert fake.physical
        assert b"?" in fake.packets, "removes the breakpoints that a debugger left"


def test_connecting_leaves_a_paused_guest_paused(path: Path) -> None:
    fake = FakeStub(path, running=False)
    with connected(fake):
        assert not fake.running
        assert b"c" not in fake.packets


@pytest.mark.parametrize("end", [b"", b"#"])
def test_a_line_that_a_dead_client_left_is_not_executed(path: Path, end: bytes) -> None:
    line = b"M1000,2:ffff"
    line += bytes([-sum(line) & 0xFF])
    assert sum(line) & 0xFF == 0, "the checksum that the classic #00 would complete"
    fake = FakeStub(path, unfinished=line + end)
    with connected(fake) as stub:
        assert fake.memory[0x1000:0x1002] == bytes(2)
        assert stub.stop()
        assert stub.read([(AT, 2)]) == [bytes(2)]
        stub.resume()


def test_a_stub_that_is_handed_over_takes_virtual_addresses(path: Path) -> None:
    fake = FakeStub(path)
    with connected(fake) as stub:
        stub.hand_over()
        assert running_soon(fake)
        assert not fake.physical
        with pytest.raises(StubClosedError):
            stub.stop()


def test_a_stub_is_handed_over_though_the_guest_is_resumed_from_outside(path: Path) -> None:
    fake = FakeStub(path, cont_before={GREETING_PACKETS + 2})
    with connected(fake) as stub:
        stub.hand_over()
        assert running_soon(fake)
        assert not fake.physical


def test_a_connection_is_closed_though_the_stub_does_not_answer(path: Path) -> None:
    fake = FakeStub(path, drop={GREETING_PACKETS + 1})
    with fake:
        stub = GdbStub.connect(path, timeout_seconds=TIMEOUT_SECONDS)
        with in_time(), pytest.raises(StubTimeoutError):
            stub.hand_over()
        with pytest.raises(StubClosedError):
            stub.stop()
        assert running_soon(fake)


def test_stop_tells_who_stopped_the_guest(path: Path) -> None:
    fake = FakeStub(path)
    with connected(fake) as stub:
        assert stub.stop()
        assert stub.in_stop
        stub.resume()
        assert running_soon(fake)
        fake.pause()
        assert not stub.stop()
        stub.resume()
        assert not fake.running
        fake.cont()
        assert stub.stop()


def test_a_paused_guest_can_be_read_and_written_and_stays_paused(path: Path) -> None:
    fake = FakeStub(path, running=False)
    with connected(fake) as stub:
        assert not stub.stop()
        stub.write([(AT, b"abc")])
        assert stub.read([(AT, 3)]) == [b"abc"]
    assert not fake.running


def test_stop_works_where_stops_are_not_reported(path: Path) -> None:
    fake = FakeStub(path, running=False, silent_stops=True)
    with connected(fake) as stub:
        fake.cont()
        assert stub.stop()
        stub.resume()
        assert running_soon(fake)


@given(
    st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=64)), max_size=300),
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=15)
def test_what_is_written_is_read_back_however_replies_are_cut(
    writes: list[tuple[int, bytes]], sizes: list[int]
) -> None:
    expected = bytearray(0x20000)
    for address, data in writes:
        expected[address : address + len(data)] = data
    with tempfile.TemporaryDirectory() as directory:
        fake = FakeStub(Path(directory) / "gdb", faults=Faults(sizes=sizes))
        with connected(fake) as stub:
            stub.stop()
            stub.write([(GuestPhysical(address), data) for address, data in writes])
            spans = [(GuestPhysical(address), len(data)) for address, data in writes]
            found = stub.read(spans)
            stub.resume()
        assert fake.memory[: len(expected)] == expected
        assert found == [bytes(expected[at : at + size]) for at, size in spans]


def test_large_pieces_are_cut_to_what_the_stub_takes(path: Path) -> None:
    fake = FakeStub(path)
    data = bytes(range(256)) * 1024
    with connected(fake) as stub:
        stub.stop()
        stub.write([(AT, data)])
        assert stub.read([(AT, len(data)), (AT, 0)]) == [data, b""]
        stub.resume()
    assert max(map(len, fake.packets)) <= 4095


def test_addresses_beyond_physical_memory_are_refused_here(path: Path) -> None:
    with connected(FakeStub(path)) as stub:
        stub.stop()
        for address, size in ((-1, 1), (1 << 52, 1), ((1 << 52) - 1, 2), (0, -1)):
            with pytest.raises(OutOfRamError):
                stub.read([(GuestPhysical(address), size)])
        stub.resume()


def test_a_refused_write_names_its_address_and_the_rest_was_counted(path: Path) -> None:
    bad = GuestPhysical(1 << 30)
    with connected(FakeStub(path)) as stub:
        stub.stop()
        with pytest.raises(StubWriteError, match="0x40000000") as caught:
            stub.write([(AT, b"a"), (bad, b"b"), (GuestPhysical(AT + 1), b"c")])
        assert caught.value.address == bad
        with pytest.raises(StubReadError):
            stub.read([(bad, 1)])
        assert stub.read([(AT, 2)]) == [b"ac"]
        stub.resume()


def test_memory_is_not_touched_outside_a_stop(path: Path) -> None:
    fake = FakeStub(path)
    with connected(fake) as stub:
        with pytest.raises(StubStateError):
            stub.write([(AT, b"a")])
        with pytest.raises(StubStateError):
            stub.read([(AT, 1)])
        stub.stop()
        with pytest.raises(StubStateError):
            stub.stop()
        stub.resume()
        stub.resume()
        assert running_soon(fake)


def test_the_guard_knows_of_every_stop_before_it_begins_and_after_it_ends(path: Path) -> None:
    fake, flag = FakeStub(path), Flag()
    with connected(fake, guard=flag) as stub:
        assert flag.calls == [True, False]
        stub.stop()
        assert flag.stopped
        stub.resume()
        assert not flag.stopped
        fake.pause()
        stub.stop()
        assert not flag.stopped
        stub.resume()
    assert not flag.stopped


def test_closing_in_a_stop_resumes_the_guest(path: Path) -> None:
    fake, flag = FakeStub(path), Flag()
    with connected(fake, guard=flag) as stub:
        stub.stop()
        stub.close()
        stub.close()
        assert running_soon(fake)
        assert not flag.stopped
        with pytest.raises(StubClosedError):
            stub.stop()


def test_drain_takes_the_reports_of_stops_from_outside(path: Path) -> None:
    fake = FakeStub(path)
    with connected(fake) as stub:
        for _ in range(50):
            fake.pause()
            fake.cont()
            stub.drain()
        assert stub.stop()
        stub.drain()
        stub.resume()
