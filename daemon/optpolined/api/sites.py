"""Sites as people see them: rows of a table, and one of them explained."""

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

__all__ = (
    "DOCUMENTED",
    "Event",
    "Explanation",
    "Instruction",
    "Listing",
    "Part",
    "SiteRow",
    "StaticCallRow",
    "Target",
)

DOCUMENTED = ConfigDict(use_attribute_docstrings=True)
"""The schema says of each field what the code says."""


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Target:
    """A function that a site calls directly."""

    name: str
    address: str
    """In hexadecimal."""
    share: float | None = None
    """Its part of the site's calls when it was chosen, 0 to 1; none where nothing was counted."""


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class SiteRow:
    """Where one site stands, and why."""

    site: str
    """As function+0x1f, with its module if it has one: what the commands take."""
    address: str
    """In hexadecimal."""
    state: str
    """The strategy's; or pinned, banned (also until it is relearned), or skipped."""
    reason: str
    form: str
    """What stands there: original, learning stub, chain, chain that counts its hits, tree, keyed
    tree, key learning stub, between two forms, somebody else's."""
    targets: tuple[Target, ...] = ()
    """Called directly, or to be so with the next change; in the order of the chain."""
    calls_per_second: float = 0.0
    """As last counted."""
    misses_per_second: float = 0.0
    """In the last epoch, where the site is promoted."""


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class StaticCallRow:
    """One static call of the guest."""

    key: str
    module: str | None
    target: str | None
    """None: calls do nothing."""
    built: str | None
    """Where it went when it was built."""
    sites: int


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Event:
    """Something that was decided about a site, or done to it."""

    at: float
    """Unix time in seconds."""
    epoch: int
    site: str
    kind: Literal["decided", "changed", "refused"]
    state: str = ""
    """That the site came to, where it was decided."""
    reason: str = ""
    """Why it was decided, or refused."""
    form: str = ""
    """That it is to have, or has."""
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Instruction:
    """One line of a disassembly; addresses in it are given as symbols too."""

    address: str
    code: str
    """Its bytes, in hexadecimal."""
    text: str


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Listing:
    """Machine code that stands together."""

    address: str
    size: int
    """In bytes."""
    lines: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Part:
    """One place of a site: its call, or the compare or the branch of an inline site."""

    name: str
    original: Listing
    """As it was built."""
    standing: Listing
    """As it is now."""


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Explanation:
    """Why a site is as it is."""

    row: SiteRow
    register: str
    """That names the target of the call."""
    kind: Literal["call", "jmp"]
    parts: tuple[Part, ...]
    block: Listing | None
    """The code in the arena that the site leads to."""
    history: tuple[Event, ...]
    """What was decided about it and done to it, the newest first; the oldest are forgotten."""
