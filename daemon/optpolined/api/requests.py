"""What a client can ask of a running daemon: the wire schema of requests and answers.

On the status socket a client sends requests, each a JSON object on a line of its own:

    {"request": "release-stub"}

For each request it receives one line, in the same order:

    {"outcome": "done", "says": "gdb -ex 'target remote /run/optpolined/gdb-42.sock'; ..."}

``outcome`` is one of:

- ``done``;
- ``refused``: the line was no request, or the request cannot be carried out now.  Nothing has
  changed.
- ``failed``: it was tried.

``says`` is one line for people.  An answer to a question has ``sites``, ``static_calls`` or
``explanation`` too.

A new request is a class here and a case in `daemon/request_handler.py`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from optpolined.api.errors import BadRequestError, complaint
from optpolined.api.sites import Explanation, SiteRow, StaticCallRow

__all__ = (
    "SITES_MAX",
    "Answer",
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
    """Give the gdbstub to a debugger; only observe until :class:`TakeStub`."""

    request: Literal["release-stub"] = "release-stub"


class TakeStub(_Message):
    """Take the gdbstub back."""

    request: Literal["take-stub"] = "take-stub"


class ListStaticCalls(_Message):
    """List the static calls of the guest, a row for each key."""

    request: Literal["static-call-list"] = "static-call-list"


class SetStaticCall(_Message):
    """Point a static call at a function; without ``function`` its calls do nothing."""

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
    """Drop what was learned of a site, or that it was reverted, and learn again."""

    request: Literal["relearn"] = "relearn"
    site: _Name


class Freeze(_Message):
    """Change no site until :class:`Thaw`; patched sites stay patched, and are counted."""

    request: Literal["freeze"] = "freeze"


class Thaw(_Message):
    """Change sites again, after :class:`Freeze` or a :class:`Revert` of all sites."""

    request: Literal["thaw"] = "thaw"


class Revert(_Message):
    """Put a site back until :class:`Relearn`; without ``site`` put all back, and freeze."""

    request: Literal["revert"] = "revert"
    site: _Name | None = None


class Pin(_Message):
    """Give a site one target, whatever the strategy learns."""

    request: Literal["pin"] = "pin"
    site: _Name
    target: _Name


class Unpin(_Message):
    """Let a pinned site learn again."""

    request: Literal["unpin"] = "unpin"
    site: _Name


class Ban(_Message):
    """Put a site, or all sites of the functions that match, back, and keep them so."""

    request: Literal["ban"] = "ban"
    what: _Name


class Unban(_Message):
    """Lift a ban, given as it was given to :class:`Ban`."""

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
"""Requests that change nothing; clients that may only read may send them."""

_REQUEST: TypeAdapter[Request] = TypeAdapter(Request)


class Answer(_Message):
    """The answer to a request."""

    outcome: Literal["done", "refused", "failed"]
    says: str
    sites: tuple[SiteRow, ...] = ()
    """For :class:`ListSites`."""
    static_calls: tuple[StaticCallRow, ...] = ()
    """For :class:`ListStaticCalls`."""
    explanation: Explanation | None = None
    """For :class:`Explain`."""


def parse_request(line: bytes) -> Request:
    """Parse one line.

    :raise BadRequestError: it is not a request; the message says why in one line.
    """
    try:
        return _REQUEST.validate_json(line)
    except ValidationError as error:
        raise BadRequestError(f"not a request: {complaint(error)}") from error
