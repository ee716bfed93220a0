"""Which call each state of a gdbstub connection allows, and what an interrupted one leaves."""

from collections.abc import Callable
from pathlib import Path

import pytest

from optpolined.qemu.errors import StubClosedError, StubError, StubStateError
from optpolined.qemu.gdbstub import GdbStub
from optpolined.qemu.states import IN_STOP, UNUSABLE, StubState
from tests.unit.fakes.fake_stub import FakeStub
from tests.unit.qemu.stub_client import AT, assert_usable, connected, interrupted, running_soon

Prepare = Callable[[GdbStub, FakeStub], None]
Call = Callable[[GdbStub], object]


def _idle(_stub: GdbStub, _fake: FakeStub) -> None:
    pass


def _stopping(stub: GdbStub, _fake: FakeStub) -> None:
    with interrupted(stub, 1):
        stub.stop()


def _stopped(stub: GdbStub, _fake: FakeStub) -> None:
    assert stub.stop()


def _paused(stub: GdbStub, fake: FakeStub) -> None:
    fake.pause()
    assert not stub.stop()


def _broken(stub: GdbStub, fake: FakeStub) -> None:
    fake.hang_up()
    with pytest.raises(StubClosedError):
        stub.drain()


def _broken_in_stop(stub: GdbStub, fake: FakeStub) -> None:
    stub.stop()
    fake.hang_up()
    with pytest.raises(StubClosedError):
        stub.read([(AT, 1)])


def _closed(stub: GdbStub, _fake: FakeStub) -> None:
    stub.close()


PREPARE: dict[StubState, Prepare] = {
    StubState.IDLE: _idle,
    StubState.STOPPING: _stopping,
    StubState.STOPPED: _stopped,
    StubState.PAUSED: _paused,
    StubState.BROKEN: _broken,
    StubState.BROKEN_IN_STOP: _broken_in_stop,
    StubState.CLOSED: _closed,
}

CALLS: dict[str, Call] = {
    "stop": GdbStub.stop,
    "resume": GdbStub.resume,
    "read": lambda stub: stub.read([(AT, 1)]),
    "read nothing": lambda stub: stub.read([]),
    "write": lambda stub: stub.write([(AT, b"x")]),
    "write nothing": lambda stub: stub.write([]),
    "drain": GdbStub.drain,
    "hand_over": GdbStub.hand_over,
    "close": GdbStub.close,
}

_ACCESS = {"read", "read nothing", "write", "write nothing"}


def _after(state: StubState, call: str) -> tuple[type[StubError] | None, StubState]:
    """Which error ``call`` raises in ``state``, and the state that follows."""
    if call == "close":
        return None, StubState.CLOSED
    error: type[StubError] | None = None
    following = state
    if state in UNUSABLE:
        error = StubClosedError
    elif state in IN_STOP:
        if call in ("stop", "hand_over"):
            error = StubStateError
        elif call == "resume":
            following = StubState.IDLE
        elif call in ("read", "write") and state is StubState.STOPPING:
            following = StubState.STOPPED  # the replies to the stop have been found
    elif call in _ACCESS:
        error = StubStateError
    elif call == "stop":
        following = StubState.STOPPED
    return error, StubState.CLOSED if call == "hand_over" else following


@pytest.mark.parametrize(
    ("state", "call"), [(state, call) for state in StubState for call in CALLS]
)
def test_each_state_allows_the_calls_that_it_says(path: Path, state: StubState, call: str) -> None:
    error, following = _after(state, call)
    fake = FakeStub(path)
    with connected(fake) as stub:
        assert running_soon(fake)
        PREPARE[state](stub, fake)
        assert stub.state is state
        assert stub.in_stop is (state in IN_STOP)
        if error is None:
            CALLS[call](stub)
        else:
            with pytest.raises(error) as caught:
                CALLS[call](stub)
            assert type(caught.value) is error
        assert stub.state is following
        assert bool(stub.unusable_because) is (following in UNUSABLE)


def test_a_state_error_says_which_call_came_when(path: Path) -> None:
    with connected(FakeStub(path)) as stub:
        with pytest.raises(StubStateError, match=r"read\(\) was called outside a stop"):
            stub.read([(AT, 1)])
        stub.stop()
        with pytest.raises(StubStateError, match=r"stop\(\) was called within a stop"):
            stub.stop()


def test_a_guest_is_resumed_after_a_read_that_followed_an_interrupted_stop(path: Path) -> None:
    fake = FakeStub(path)
    with connected(fake) as stub:
        assert running_soon(fake)
        _stopping(stub, fake)
        assert stub.read([(AT, 1)]) == [b"\0"]
        stub.resume()
        assert running_soon(fake)


def test_a_resume_that_was_interrupted_can_be_repeated(path: Path) -> None:
    fake = FakeStub(path)
    with connected(fake) as stub:
        assert stub.stop()
        with interrupted(stub, 1):
            stub.resume()
        assert stub.in_stop
        stub.resume()
        assert running_soon(fake)
        assert_usable(stub)
        assert running_soon(fake)
