"""The gdbstub client against a stub that behaves, and against ones that do not."""

import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestPhysical
from optpolined.qemu.errors import (
    OutOfRamError,
    QemuError,
    ResumedError,
    StubAbsentError,
    StubClosedError,
    StubProtocolError,
    StubReadError,
    StubStateError,
    StubTimeoutError,
    StubWriteError,
)
from optpolined.qemu.gdbstub import GdbStub
from tests.unit.fakes.fake_stub import FakeStub
from tests.unit.fakes.faults import Faults

TIMEOUT_SECONDS = 0.4
SLACK_SECONDS = 2.0

GREETING_PACKETS = 6
"""$ that the client sends to connect to a guest that runs: five, and ``c``."""

AT = GuestPhysical(0x1000)


class Flag:
    """A guard that remembers."""

    def __init__(self) -> None:
        self.stopped = False
        self.calls: list[bool] = []

    def stopping(self) -> None:
        self.stopped = True
        self.calls.append(True)

    def resumed(self) -> None:
        self.stopped = False
        self.calls.append(False)


@pytest.fixture
def path() -> Iterator[Path]:
    """A short path: pytest's own may be too long for a socket."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "gdb"


@contextlib.contextmanager
def connected(fake: FakeStub, *, guard: Flag | None = None) -> Iterator[GdbStub]:
    with fake, GdbStub.connect(fake.path, timeout_seconds=5, guard=guard) as stub:
        yield stub


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < TIMEOUT_SECONDS + SLACK_SECONDS


def running_soon(fake: FakeStub) -> bool:
    """The fake acknowledges ``c`` before it acts on it, as QEMU does."""
    deadline = time.monotonic() + SLACK_SECONDS
    while not fake.running and time.monotonic() < deadline:
        time.sleep(0.001)
    return fake.running


# A stub that behaves


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


def test_a_stub_is_handed_over_though_somebody_resumes_the_guest(path: Path) -> None:
    fake = FakeStub(path, cont_before={GREETING_PACKETS + 2})
    with connected(fake) as stub:
        stub.hand_over()
        assert running_soon(fake)
        assert not fake.physical


def test_a_stub_that_does_not_take_its_leave_is_closed_all_the_same(path: Path) -> None:
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


def test_drain_takes_what_other_peoples_stops_leave(path: Path) -> None:
    fake = FakeStub(path)
    with connected(fake) as stub:
        for _ in range(50):
            fake.pause()
            fake.cont()
            stub.drain()
        assert stub.stop()
        stub.drain()
        stub.resume()


@contextlib.contextmanager
def interrupted(stub: GdbStub, number: int) -> Iterator[None]:
    """Ctrl-C at the ``number``-th reception, which are of 16 bytes at most."""
    receive, left = stub._wire._receive, [number]

    def interrupt(size: int, flags: int = 0) -> bytes:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return receive(min(size, 16), flags)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(stub._wire, "_receive", interrupt)
        yield


def assert_usable(stub: GdbStub) -> None:
    assert stub.stop()
    assert stub.read([(AT, 4)]) == [bytes(4)]
    stub.resume()


def test_an_exception_in_the_middle_of_a_read_leaves_the_client_usable(path: Path) -> None:
    fake = FakeStub(path)
    with connected(fake) as stub:
        for number in range(1, 60):
            stub.stop()
            with interrupted(stub, number):
                stub.read([(AT, 64)] * 5)
            stub.resume()
            assert running_soon(fake)
            assert_usable(stub)


def test_an_exception_in_the_middle_of_a_stop_leaves_the_guest_as_it_was(path: Path) -> None:
    fake = FakeStub(path)
    with connected(fake) as stub:
        for number in range(1, 8):
            with interrupted(stub, number):
                stub.stop()
            stub.resume()
            assert running_soon(fake)
            fake.pause()
            with interrupted(stub, number):
                stub.stop()
            stub.resume()
            assert not fake.running
            fake.cont()
            assert_usable(stub)


def test_an_exception_between_the_two_answers_of_a_stop_leaves_a_paused_guest_paused(
    path: Path,
) -> None:
    fake = FakeStub(path, faults=Faults(sizes=(7,), delay_seconds=0.002), running=False)
    with connected(fake) as stub:
        for number in range(1, 12):
            with interrupted(stub, number):
                stub.stop()
            stub.resume()
            assert not fake.running


def test_closing_after_an_exception_in_a_stop_resumes_the_guest(path: Path) -> None:
    for number in range(1, 4):
        fake = FakeStub(path)
        with connected(fake) as stub:
            with interrupted(stub, number):
                stub.stop()
            stub.close()
            assert running_soon(fake)


# Somebody else resumes or pauses the guest


@pytest.mark.parametrize("lost", range(5))
def test_a_resume_in_the_middle_of_reads_is_noticed_and_the_guest_runs(
    path: Path, lost: int
) -> None:
    fake = FakeStub(path, cont_before={GREETING_PACKETS + 2 + lost})
    flag = Flag()
    with connected(fake, guard=flag) as stub:
        stub.stop()
        with pytest.raises(ResumedError):
            stub.read([(AT, 8)] * 5)
        assert not stub.in_stop
        assert not flag.stopped
        assert running_soon(fake)
        stub.resume()
        assert stub.stop()
        assert stub.read([(AT, 8)]) == [bytes(8)]
        stub.resume()


@pytest.mark.parametrize("lost", [{0}, {3}, {4}, {0, 4}, {1, 2, 3}])
def test_resumes_in_the_middle_of_writes_are_noticed(path: Path, lost: set[int]) -> None:
    fake = FakeStub(path, cont_before={GREETING_PACKETS + 2 + number for number in lost})
    with connected(fake) as stub:
        stub.stop()
        with pytest.raises(ResumedError):
            stub.write([(GuestPhysical(AT + number), b"x") for number in range(5)])
        assert running_soon(fake)
        assert stub.stop()
        stub.write([(AT, b"y")])
        stub.resume()
    missing = [number for number in range(1, 5) if not fake.memory[AT + number]]
    assert missing == sorted(lost - {0})


def test_a_resume_before_ours_is_noticed_and_the_guest_runs(path: Path) -> None:
    fake = FakeStub(path, cont_before={GREETING_PACKETS + 2})
    with connected(fake) as stub:
        stub.stop()
        with pytest.raises(ResumedError):
            stub.resume()
        assert running_soon(fake)
        assert stub.stop()
        stub.resume()


def test_resumes_before_each_of_ours_are_outlasted(path: Path) -> None:
    # Each try is a ``c`` and, where that was lost, a burst of two packets.
    tries = {GREETING_PACKETS + 2 + 3 * number for number in range(5)}
    fake = FakeStub(path, cont_before=tries)
    with connected(fake) as stub:
        stub.stop()
        with pytest.raises(ResumedError):
            stub.resume()
        assert running_soon(fake)
        assert stub.stop()
        stub.resume()


def test_a_guest_that_is_always_resumed_is_given_up(path: Path) -> None:
    fake = FakeStub(path, cont_before=range(GREETING_PACKETS + 2, 1000, 3))
    with connected(fake) as stub:
        stub.stop()
        with in_time(), pytest.raises(StubProtocolError, match="again and again"):
            stub.resume()


def test_a_pause_that_somebody_made_within_our_stop_stays(path: Path) -> None:
    number = GREETING_PACKETS + 4
    fake = FakeStub(path, cont_before={number}, pause_before={number})
    with connected(fake) as stub:
        stub.stop()
        with pytest.raises(ResumedError):
            stub.read([(AT, 8)] * 5)
        assert not fake.running
        assert not stub.stop()
        stub.resume()
        assert not fake.running


def test_a_pause_just_before_our_stop_is_not_ours(path: Path) -> None:
    fake = FakeStub(path, pause_before={GREETING_PACKETS})
    with connected(fake) as stub:
        assert not stub.stop()
        stub.resume()
        assert not fake.running


def test_a_lost_reply_without_a_stop_report_is_taken_for_a_resume(path: Path) -> None:
    fake = FakeStub(path, silent_stops=True, running=False, cont_before={GREETING_PACKETS + 2})
    with fake, GdbStub.connect(path, timeout_seconds=TIMEOUT_SECONDS) as stub:
        stub.stop()
        with in_time(), pytest.raises(ResumedError):
            stub.read([(AT, 8)] * 5)
        assert running_soon(fake)


# Stubs that do not behave


def use(path: Path) -> None:
    """Everything that the client can do."""
    with GdbStub.connect(path, timeout_seconds=TIMEOUT_SECONDS) as stub:
        for _ in range(2):
            stub.stop()
            stub.write([(GuestPhysical(AT + 8 * number), b"x" * 8) for number in range(20)])
            stub.read([(GuestPhysical(AT + 8 * number), 8) for number in range(20)])
            stub.resume()


CONVERSATION_BYTES = 1500


@given(
    st.one_of(
        st.builds(Faults, hang_up_after=st.integers(0, CONVERSATION_BYTES)),
        st.builds(
            Faults,
            garble=st.dictionaries(
                st.integers(0, CONVERSATION_BYTES), st.integers(1, 255), min_size=1, max_size=3
            ),
            sizes=st.lists(st.integers(1, 200), max_size=3),
        ),
    )
)
@settings(deadline=None, max_examples=60)
def test_a_broken_stream_ends_in_a_named_error_in_time(faults: Faults) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "gdb"
        began = time.monotonic()
        with FakeStub(path, faults=faults), contextlib.suppress(QemuError):
            use(path)
        assert time.monotonic() - began < 4 * TIMEOUT_SECONDS + SLACK_SECONDS


@pytest.mark.parametrize("after", [0, 1, 17, 60, 77, 120, 400])
def test_a_stub_that_falls_silent_is_given_up(path: Path, after: int) -> None:
    with (
        FakeStub(path, faults=Faults(silent_after=after)),
        in_time(),
        pytest.raises((StubTimeoutError, StubClosedError)),
    ):
        use(path)


def test_a_stub_that_trickles_is_given_up(path: Path) -> None:
    faults = Faults(sizes=(1,), delay_seconds=0.05)
    with FakeStub(path, faults=faults), in_time(), pytest.raises(StubTimeoutError):
        use(path)


@pytest.mark.parametrize(
    "flood", [b"+" * 4096, b"$" * 4096, b"x" * 4096, b"$OK#9a" * 500, b"$T02thread:01;#04" * 200]
)
def test_a_stub_that_never_ends_is_given_up(path: Path, flood: bytes) -> None:
    with (
        FakeStub(path, faults=Faults(flood=flood)),
        in_time(),
        pytest.raises((StubTimeoutError, StubProtocolError)),
    ):
        use(path)


def test_a_dropped_reply_is_given_up_and_the_guest_runs(path: Path) -> None:
    fake = FakeStub(path, drop={8})
    with fake, GdbStub.connect(path, timeout_seconds=TIMEOUT_SECONDS) as stub:
        stub.stop()
        with in_time(), pytest.raises(ResumedError):
            stub.write([(GuestPhysical(AT + number), b"x") for number in range(20)])
        assert running_soon(fake)


def test_after_an_error_the_connection_says_why_it_is_useless(path: Path) -> None:
    fake = FakeStub(path)
    with fake, GdbStub.connect(path, timeout_seconds=TIMEOUT_SECONDS) as stub:
        stub.stop()
        fake.hang_up()
        with pytest.raises(StubClosedError):
            stub.read([(AT, 1)])
        with pytest.raises(StubClosedError, match="cannot be used"):
            stub.resume()


def test_what_is_no_stub_is_told_in_one_line(path: Path) -> None:
    with pytest.raises(StubAbsentError, match="no such socket"):
        GdbStub.connect(path)
    path.touch()
    with pytest.raises(StubAbsentError, match="not a socket"):
        GdbStub.connect(path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(StubAbsentError, match="nobody listens"):
            GdbStub.connect(path)
        listener.listen(1)
        with in_time(), pytest.raises(StubTimeoutError, match="another gdb"):
            GdbStub.connect(path, timeout_seconds=TIMEOUT_SECONDS)
    with pytest.raises(StubAbsentError, match="too long"):
        GdbStub.connect(Path("x" * 200))
