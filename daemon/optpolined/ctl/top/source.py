"""Asks the daemon for what the live view shows."""

import json
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from optpolined.api.errors import NoAnswerError
from optpolined.api.requests import Answer, Explain, ListSites, Request
from optpolined.api.sites import SiteRow
from optpolined.api.status import STATUS, Status

__all__ = ("FILTER_MAX", "Order", "Seen", "Source", "View", "as_line", "explain", "look")

FILTER_MAX = 200
"""In characters."""

_ROWS = 200
_PATIENCE_SECONDS = 5.0

Order = Literal["address", "calls", "misses"]


class Source(Protocol):
    """The daemon of one guest."""

    guest: str

    def status(self) -> Status:
        """Return its status.

        :raise NoAnswerError: no answer comes.
        """

    def ask(self, request: Request, *, timeout_seconds: float) -> Answer:
        """Send a request, and return its answer.

        :raise NoAnswerError: no answer comes in time.
        """


@dataclass(frozen=True, slots=True)
class View:
    """Which sites, and in which order."""

    order: Order = "calls"
    symbol: str = ""
    """A part of the function's name, or a shell pattern over it; empty: all."""

    @property
    def request(self) -> ListSites:
        """The request for these sites."""
        symbol = self.symbol[:FILTER_MAX]
        is_pattern = any(letter in symbol for letter in "*?[")
        pattern = symbol if is_pattern else f"*{symbol}*" if symbol else "*"
        return ListSites(pattern=pattern, order=self.order, top=_ROWS)


@dataclass(frozen=True, slots=True)
class Seen:
    """The result of one update; ``trouble`` says why it is incomplete."""

    status: Status | None = None
    rows: tuple[SiteRow, ...] = ()
    says: str = ""
    trouble: str = ""

    def in_trouble(self, later: "Seen") -> "Seen":
        """Return this with the status and the trouble of ``later``; the sites stay visible."""
        return replace(self, status=later.status or self.status, trouble=later.trouble)


def look(source: Source, view: View) -> Seen:
    """Ask for the status, and for the sites of ``view``."""
    status = None
    try:
        status = source.status()
        answer = source.ask(view.request, timeout_seconds=_PATIENCE_SECONDS)
    except NoAnswerError as error:
        return Seen(status, trouble=str(error))
    if answer.outcome != "done":
        return Seen(status, trouble=answer.says)
    return Seen(status, answer.sites, answer.says)


def explain(source: Source, site: str) -> Answer:
    """Ask why ``site`` is as it is; where no answer comes, the returned answer says so."""
    try:
        return source.ask(Explain(site=site), timeout_seconds=_PATIENCE_SECONDS)
    except NoAnswerError as error:
        return Answer(outcome="failed", says=str(error))


def as_line(seen: Seen) -> str:
    """Return the update as JSON, by the schemas of the status API."""
    status = None if seen.status is None else STATUS.dump_python(seen.status, mode="json")
    answer = Answer(
        outcome="failed" if seen.trouble else "done",
        says=seen.trouble or seen.says,
        sites=seen.rows,
    )
    told = answer.model_dump(mode="json", include={"outcome", "says", "sites"})
    return json.dumps(told | {"status": status})
