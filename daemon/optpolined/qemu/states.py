"""The states of a gdbstub connection, and which call each state allows.

::

    IDLE --stop()--> STOPPING --+--> STOPPED --+--resume(), or ResumedError--> IDLE
                                +--> PAUSED ---+

    STOPPING, STOPPED --error--> BROKEN_IN_STOP --+
    IDLE, PAUSED      --error--> BROKEN ----------+--close()--> CLOSED
    any other         ----------------------------+

An error here is one after which the connection cannot be used: StubTimeoutError, StubProtocolError
or StubClosedError.
"""

import functools
from collections.abc import Callable
from enum import Enum
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from optpolined.qemu.errors import StubClosedError, StubStateError

__all__ = ("IN_STOP", "UNUSABLE", "USABLE", "StubState", "require")

_P = ParamSpec("_P")
_T = TypeVar("_T")


class StubState(Enum):
    """What is known of the guest, and of the connection.  The value completes an error's text."""

    IDLE = "outside a stop"
    """No stop is open.  The guest runs, unless something else has paused it."""
    STOPPING = "while a stop begins"
    """A stop is open, but an exception came before it was known who had stopped the guest."""
    STOPPED = "within a stop"
    """A stop is open; this connection has stopped the guest and must resume it."""
    PAUSED = "within a stop of a paused guest"
    """A stop is open; the guest was paused before, and stays so."""
    BROKEN = "after an error"
    """The connection cannot be used.  The guest is as others left it."""
    BROKEN_IN_STOP = "after an error within a stop"
    """The connection cannot be used.  This connection may have left the guest stopped."""
    CLOSED = "after close()"


IN_STOP = frozenset((StubState.STOPPING, StubState.STOPPED, StubState.PAUSED))
"""A stop is open, and memory can be read and written."""

UNUSABLE = frozenset((StubState.BROKEN, StubState.BROKEN_IN_STOP, StubState.CLOSED))

USABLE = frozenset(StubState) - UNUSABLE


class _Stateful(Protocol):
    @property
    def state(self) -> StubState: ...
    @property
    def unusable_because(self) -> str: ...


_S = TypeVar("_S", bound=_Stateful)


def require(
    *states: StubState,
) -> Callable[[Callable[Concatenate[_S, _P], _T]], Callable[Concatenate[_S, _P], _T]]:
    """Let a method be called in ``states`` only, which must be usable ones.

    In another state the decorated method does nothing and raises

    - StubClosedError in one of UNUSABLE, with the reason;
    - StubStateError in any other: the caller is at fault.
    """
    allowed = frozenset(states)

    def decorate(method: Callable[Concatenate[_S, _P], _T]) -> Callable[Concatenate[_S, _P], _T]:
        @functools.wraps(method)
        def checked(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
            state = self.state
            if state not in allowed:
                if state in UNUSABLE:
                    raise StubClosedError(
                        f"the gdbstub connection cannot be used: {self.unusable_because}"
                    )
                raise StubStateError(f"{method.__name__}() was called {state.value}")
            return method(self, *args, **kwargs)

        return checked

    return decorate
