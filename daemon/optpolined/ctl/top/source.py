"""What is looked at, and what was seen there."""

import json
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from optpolined.api.errors import NoAnswerError
from optpolined.api.requests import Answer, Explain, ListSites, Request
from optpolined.api.sites import SiteRow
from optpolined.api.status import STATUS, Status

__all__ = ("FILTER_MAX", "Order", "Seen", "Source", "View", "as_line", "explain", "look")

FILTER_MAX = 200
"""Letters."""

_ROWS = 200
_PATIENCE_SECONDS = 5.0

Order = Literal["address", "calls", "misses"]


class Source(Protocol):
    """Who is asked: the daemon of one guest."""

    guest: str

    def status(self) -> Status:
        """What it is doing.

        :raise NoAnswerError: nobody answers.
        """

    def ask(self, request: Request, *, timeout_seconds: float) -> Answer:
        """What came of ``request``.

        :raise NoAnswerError: nobody answers in time.
        """


@dataclass(frozen=True, slots=True)
class View:
    """Which sites, and in which order."""

    order: Order = "calls"
    symbol: str = ""
    """A part of the function's name, or a shell pattern over it; empty: all."""

    @property
    def request(self) -> ListSites:
        """What asks for it."""
        symbol = self.symbol[:FILTER_MAX]
        is_pattern = any(letter in symbol for letter in "*?[")
        pattern = symbol if is_pattern else f"*{symbol}*" if symbol else "*"
        return ListSites(pattern=pattern, order=self.order, top=_ROWS)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look saw; ``trouble`` says why there is no more of it."""

    status: Status | None = None
    rows: tuple[SiteRow, ...] = ()
    says: str = ""
    trouble: str = ""

    def in_trouble(self, later: "Seen") -> "Seen":
        """This, with what ``later`` still saw: the sites stay to be read."""
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
    """Ask why ``site`` is as it is; where nobody answers, the answer says so."""
    try:
        return source.ask(Explain(site=site), timeout_seconds=_PATIENCE_SECONDS)
    except NoAnswerError as error:
        return Answer(outcome="failed", says=str(error))


def as_line(seen: Seen) -> str:
    """What was seen as JSON, by the schemas of the status API."""
    status = None if seen.status is None else STATUS.dump_python(seen.status, mode="json")
    answer = Answer(
        outcome="failed" if seen.trouble else "done",
        says=seen.trouble or seen.says,
        sites=seen.rows,
    )
    told = answer.model_dump(mode="json", include={"outcome", "says", "sites"})
    return json.dumps(told | {"status": status})
