"""Sites in answers: rows of a table, and one site explained."""

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
"""The JSON schema takes its descriptions from the docstrings of the fields."""


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Target:
    """A function that a site calls directly."""

    name: str
    address: str
    """In hexadecimal."""
    share: float | None = None
    """Its part of the site's calls when it was chosen, 0 to 1; null where nothing was counted."""


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class SiteRow:
    """One site, its state, and why."""

    site: str
    """As function+0x1f, with its module if it has one, as the commands take it."""
    address: str
    """In hexadecimal."""
    state: str
    """The state that the strategy gives it; or pinned, banned (reverted too), or skipped."""
    reason: str
    form: str
    """Its code now: original, learning stub, chain, chain that counts its hits, tree, keyed
    tree, key learning stub, between two forms, somebody else's."""
    targets: tuple[Target, ...] = ()
    """The direct targets of now, or of the next change; in the order of the chain."""
    calls_per_second: float = 0.0
    """The moving average of the epochs that counted all calls of the site."""
    misses_per_second: float = 0.0
    """In the last epoch, where the site is promoted."""


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class StaticCallRow:
    """One static call of the guest."""

    key: str
    module: str | None
    target: str | None
    """Null: calls do nothing."""
    built: str | None
    """The target that it was built with."""
    sites: int


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Event:
    """A decision about a site, or a change of it."""

    at: float
    """Unix time in seconds."""
    epoch: int
    site: str
    kind: Literal["decided", "changed", "refused"]
    state: str = ""
    """The state that was decided."""
    reason: str = ""
    """Why it was decided, or why the change was refused."""
    form: str = ""
    """The form that the site is to have, or has."""
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Instruction:
    """One line of a disassembly; its addresses have their symbols beside them."""

    address: str
    code: str
    """Its bytes, in hexadecimal."""
    text: str


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Listing:
    """Machine code at consecutive addresses."""

    address: str
    size: int
    """In bytes."""
    lines: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Part:
    """One place of a site: its call, or the compare or the branch of an inline site."""

    name: str
    original: Listing
    """The code that was built."""
    standing: Listing
    """The code of now."""


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Explanation:
    """One site in depth."""

    row: SiteRow
    register: str
    """The register that holds the target of the call."""
    kind: Literal["call", "jmp"]
    parts: tuple[Part, ...]
    block: Listing | None
    """The code in the arena that the site leads to."""
    history: tuple[Event, ...]
    """The last decisions about it and changes of it, the newest first."""
