"""The state of hysteresis: plain immutable values that JSON keeps unchanged.

What exists once for each site is a ``NamedTuple``.  With thousands of sites, making a frozen
dataclass for each was a quarter of the time of an epoch.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Literal, NamedTuple, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.learning.backoff import Backoff
from optpolined.learning.errors import StateError
from optpolined.learning.shares import targets_of
from optpolined.learning.strategy import Share

__all__ = (
    "Belief",
    "History",
    "HysteresisPhase",
    "HysteresisSite",
    "HysteresisState",
    "Window",
    "dump",
    "form_of",
    "load",
    "load_json",
    "stands",
)


class HysteresisPhase(StrEnum):
    """The state of a site; the package's docstring draws the transitions."""

    COLD = "cold"
    LEARNING = "learning"
    PROMOTED = "promoted"
    MISSING = "missing"
    RELEARNING = "relearning"
    MEGAMORPHIC = "megamorphic"
    QUARANTINE = "quarantine"


class Window(NamedTuple):
    """A time in which a site's counts are collected: a learning window, or an audit of a chain."""

    since: int
    """The epoch that opened it."""
    shares: tuple[Share, ...] = ()
    """Averaged shares of the targets that were counted."""
    direct: float = 0.0
    """Averaged share of the hits."""
    calls_per_second: float = 0.0
    """Averaged rate of all calls."""
    busy: int = 0
    """Epochs with enough calls."""
    streak: int = 0
    """The last so many of them agreed (learning) or missed too often (audit)."""
    candidate: tuple[GuestVirtual, ...] = ()
    """The targets on which they agreed."""
    alarm: bool = False
    """The audit was caused by many misses, not by moderate ones."""
    keyed: bool = False
    """The site learns its key too."""


class Belief(NamedTuple):
    """What is known of a promoted site, whose hits are not counted."""

    chain: tuple[Share, ...]
    """The targets, hottest first, and their shares."""
    calls_per_second: float
    """All calls."""
    measured: int
    """The epoch in which that was seen."""


class History(NamedTuple):
    """The pauses of a site, in any phase."""

    flaps: Backoff
    """Changes of the targets, and windows that failed."""
    audits: Backoff
    """Audits of moderate misses that changed nothing."""
    alarms: Backoff
    """Audits of many misses that changed nothing."""


class HysteresisSite(NamedTuple):
    """One site."""

    phase: HysteresisPhase
    reason: str
    history: History
    deadline: int | None = None
    """The epoch that ends the phase."""
    window: Window | None = None
    """While learning, relearning or missing."""
    belief: Belief | None = None
    """While promoted or missing."""


@dataclass(frozen=True, slots=True)
class HysteresisState:
    """All sites."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    version: Literal[1]
    epoch: int = -1
    """The last one that was decided."""
    sites: dict[GuestVirtual, HysteresisSite] = field(default_factory=dict)
    new: tuple[GuestVirtual, ...] = ()
    """Sites whose first window opens with the next epoch."""
    due: dict[int, tuple[GuestVirtual, ...]] = field(default_factory=dict)
    """Sites by the epoch of their deadline.  An entry counts only if its site still has it."""


def stands(site: HysteresisSite, standing: Form) -> bool:
    """Return whether ``standing`` is the wanted form of a site, as ``form_of(site) == standing``.

    It is called for every site that counted anything, and making a form to compare with takes three
    times as long.
    """
    belief = site.belief
    if belief is None:
        form = ORIGINAL if site.window is None else LEARNING
        return standing is form or standing == form
    return (
        isinstance(standing, Chain)
        and standing.counts_hits is (site.window is not None)
        and standing.targets == targets_of(belief.chain)
    )


def form_of(site: HysteresisSite) -> Form:
    """Return the wanted form of a site."""
    belief = site.belief
    if belief is None:
        return ORIGINAL if site.window is None else LEARNING
    return Chain(targets_of(belief.chain), site.window is not None)


_JSON = TypeAdapter(HysteresisState)


def dump(state: HysteresisState) -> str:
    """Return the state as JSON."""
    return _JSON.dump_json(state).decode()


def load(text: str) -> HysteresisState:
    """Return the state that :func:`dump` wrote.

    :raise StateError: ``text`` is not such a state.
    """
    return load_json(_JSON, text, "hysteresis")


StateT = TypeVar("StateT")


def load_json(adapter: TypeAdapter[StateT], text: str, whose: str) -> StateT:
    """Return a state of the strategy ``whose`` from JSON.

    :raise StateError: ``text`` is not such a state.
    """
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "state"
        raise StateError(f"not a state of {whose}: {where}: {first['msg']}") from error
