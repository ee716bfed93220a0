"""What a running daemon can be asked to do, and the way of a request through it.

On the status socket a client sends requests, each a JSON object on a line of its own:

    {"request": "release-stub"}

and gets for each, in order, one line back:

    {"outcome": "done", "says": "gdb -ex 'target remote /run/optpolined/gdb-42.sock'; ..."}

``outcome`` is ``done``; ``refused``: as things are it cannot be done, or it was no request, and
nothing has changed; or ``failed``: it was tried.  ``says`` is one line for people; ``sites``,
``static_calls`` or ``explanation`` is there too where that was asked for.

The server's threads put requests here, the reconcile loop takes them between epochs and answers:
nothing else ever touches the guest.  A request whose client has gone before is not carried out.
A new request is a class here and a case in `daemon/request_handler.py`.
"""

import threading
from collections import deque
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from optpolined.api.errors import BadRequestError, complaint
from optpolined.api.sites import Explanation, SiteRow, StaticCallRow

__all__ = (
    "SITES_MAX",
    "Answer",
    "Asked",
    "Ban",
    "Explain",
    "Freeze",
    "ListSites",
    "ListStaticCalls",
    "Pin",
    "Question",
    "Relearn",
    "ReleaseStub",
    "Request",
    "Requests",
    "Revert",
    "SetStaticCall",
    "TakeStub",
    "Thaw",
    "Unban",
    "Unpin",
    "parse_request",
)

SITES_MAX = 100_000
"""The most rows of one answer."""

_NAME_MAX = 512


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReleaseStub(_Message):
    """Give the gdbstub up to a debugger; observe only, until it is taken back."""

    request: Literal["release-stub"] = "release-stub"


class TakeStub(_Message):
    """Take the gdbstub back."""

    request: Literal["take-stub"] = "take-stub"


class ListStaticCalls(_Message):
    """Tell the static calls of the guest, a row for each key."""

    request: Literal["static-call-list"] = "static-call-list"


class SetStaticCall(_Message):
    """Point a static call at a function; at none where there is no ``function``."""

    request: Literal["static-call-set"] = "static-call-set"
    key: Annotated[str, Field(max_length=_NAME_MAX)]
    function: Annotated[str, Field(max_length=_NAME_MAX)] | None = None


_Name = Annotated[str, Field(min_length=1, max_length=_NAME_MAX)]


class ListSites(_Message):
    """Tell where sites stand, a row for each of the first ``top``."""

    request: Literal["sites"] = "sites"
    pattern: _Name = "*"
    """Over names of functions, or module:function."""
    states: tuple[_Name, ...] = ()
    """Only sites in one of these states; all where there are none."""
    order: Literal["address", "calls", "misses"] = "address"
    """By rising address, or by falling calls or misses per second."""
    top: Annotated[int, Field(ge=1, le=SITES_MAX)] = 1000


class Explain(_Message):
    """Tell why a site is as it is: what stood there, what stands there, what was learned."""

    request: Literal["explain"] = "explain"
    site: _Name


class Relearn(_Message):
    """Forget what was learned of a site, or that it was reverted, and begin anew."""

    request: Literal["relearn"] = "relearn"
    site: _Name


class Freeze(_Message):
    """Change nothing until :class:`Thaw`; what is patched stays, and is counted."""

    request: Literal["freeze"] = "freeze"


class Thaw(_Message):
    """Go on after :class:`Freeze`."""

    request: Literal["thaw"] = "thaw"


class Revert(_Message):
    """Put a site back to what it was, until :class:`Relearn`; all of them, and freeze, if none."""

    request: Literal["revert"] = "revert"
    site: _Name | None = None


class Pin(_Message):
    """Give a site one target, whatever is learned."""

    request: Literal["pin"] = "pin"
    site: _Name
    target: _Name


class Unpin(_Message):
    """Let a pinned site learn again."""

    request: Literal["unpin"] = "unpin"
    site: _Name


class Ban(_Message):
    """Put a site, or those of the functions that match, back to what they were; they stay so."""

    request: Literal["ban"] = "ban"
    what: _Name


class Unban(_Message):
    """Take back a ban, named as it was."""

    request: Literal["unban"] = "unban"
    what: _Name


Request = Annotated[
    ReleaseStub
    | TakeStub
    | ListStaticCalls
    | SetStaticCall
    | ListSites
    | Explain
    | Relearn
    | Freeze
    | Thaw
    | Revert
    | Pin
    | Unpin
    | Ban
    | Unban,
    Field(discriminator="request"),
]

Question = ListSites | Explain | ListStaticCalls
"""What changes nothing, and may be asked by whoever may read."""

_REQUEST: TypeAdapter[Request] = TypeAdapter(Request)


class Answer(_Message):
    """What has become of a request."""

    outcome: Literal["done", "refused", "failed"]
    says: str
    sites: tuple[SiteRow, ...] = ()
    """For :class:`ListSites`."""
    static_calls: tuple[StaticCallRow, ...] = ()
    """For :class:`ListStaticCalls`."""
    explanation: Explanation | None = None
    """For :class:`Explain`."""


def parse_request(line: bytes) -> Request:
    """Read one line.

    :raise BadRequestError: it is no request; one line says why.
    """
    try:
        return _REQUEST.validate_json(line)
    except ValidationError as error:
        raise BadRequestError(f"not a request: {complaint(error)}") from error


class Asked:
    """One request on its way."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._answered = threading.Event()
        self._answer: Answer

    def answer(self, answer: Answer) -> None:
        """Answer it; a second answer is dropped."""
        if not self._answered.is_set():
            self._answer = answer
            self._answered.set()

    def wait(self, seconds: float) -> Answer | None:
        """Wait for the answer at most so long."""
        return self._answer if self._answered.wait(seconds) else None


class Requests:
    """Those that wait for the loop; as many as the server has clients."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Asked] = deque()
        self._begun: Asked | None = None
        self._is_open = True

    def put(self, request: Request) -> Asked:
        """Let a request wait for the loop; after :meth:`close` it is answered at once."""
        asked = Asked(request)
        with self._lock:
            if self._is_open:
                self._waiting.append(asked)
            else:
                asked.answer(_LEAVING)
        return asked

    def withdraw(self, asked: Asked) -> None:
        """Forget a request that nobody waits for, unless the loop has begun with it."""
        with self._lock:
            if asked in self._waiting:
                self._waiting.remove(asked)

    def take(self) -> Asked | None:
        """Begin with the next request, if there is one; it must be answered before the next."""
        with self._lock:
            self._begun = self._waiting.popleft() if self._waiting else None
            return self._begun

    def open(self) -> None:
        """Let requests wait again, after :meth:`close`: another loop has begun."""
        with self._lock:
            self._is_open = True

    def close(self) -> None:
        """Answer all that wait, and all that come: the loop has ended."""
        with self._lock:
            self._is_open = False
            if self._begun is not None:
                self._begun.answer(_FAILED)
            while self._waiting:
                self._waiting.popleft().answer(_LEAVING)


_LEAVING = Answer(outcome="refused", says="the daemon is not attached to the guest now")
_FAILED = Answer(outcome="failed", says="the daemon had to leave the guest meanwhile; see its log")
