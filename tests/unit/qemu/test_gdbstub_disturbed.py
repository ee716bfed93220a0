"""The gdbstub client while something interrupts it, or pauses and resumes the guest."""

from pathlib import Path

import pytest

from optpolined.addresses import GuestPhysical
from optpolined.qemu.errors import (
    ResumedError,
    StubProtocolError,
)
from optpolined.qemu.gdbstub import GdbStub
from tests.unit.fakes.fake_stub import FakeStub
from tests.unit.fakes.faults import Faults
from tests.unit.qemu.stub_client import (
    AT,
    GREETING_PACKETS,
    TIMEOUT_SECONDS,
    Flag,
    assert_usable,
    connected,
    in_time,
    interrupted,
    running_soon,
)


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


def test_a_pause_from_outside_within_our_stop_stays(path: Path) -> None:
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
