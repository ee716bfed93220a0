"""Why a site is left alone, or a change of it refused: every reason, in one place.

Survey, patcher, policy, status, metrics, alerts and the manual take the reasons from here.
"""

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

__all__ = ("Refusal",)


class Refusal(StrEnum):
    """A reason; its value is the label that metrics and logs carry."""

    # Found once, when the site is first seen; where several hold, the first.
    LIVE_FLAGS = "live_flags"
    OWN = "own"
    THUNK = "thunk"
    INIT = "init"
    ENTRY = "entry"
    INT3_PATH = "int3_path"
    NOINSTR = "noinstr"
    NOKPROBE = "nokprobe"
    CPUIDLE = "cpuidle"
    # Decided by the operator.
    POLICY_EXCLUDED = "policy_excluded"
    POLICY_NOT_INCLUDED = "policy_not_included"
    # Found when a change is tried.
    FOREIGN_BYTES = "foreign_bytes"
    FOREIGN_BREAKPOINT = "foreign_breakpoint"
    TABLE_CHANGED = "table_changed"
    UNMAPPED = "unmapped"
    SPLIT_PAGE = "split_page"
    OUT_OF_REACH = "out_of_reach"
    POKE_TABLE_FULL = "poke_table_full"
    NO_RECORD_LEFT = "no_record_left"
    ARENA_FULL = "arena_full"
    HELD_UP = "held_up"

    @property
    def meaning(self) -> str:
        """What it means, for people: the rest of "the site is left alone because ..."."""
        return _FACTS[self].meaning

    @property
    def is_transient(self) -> bool:
        """Whether the next epoch may well succeed; after any other reason the site rests."""
        return _FACTS[self].transient

    @property
    def is_foreign(self) -> bool:
        """Whether something else has written to the guest's text or to our tables in it."""
        return _FACTS[self].foreign

    @property
    def is_of_change(self) -> bool:
        """Whether it refuses a change; the others keep a site from being tried at all."""
        return _FACTS[self].of_change

    @property
    def is_counted(self) -> bool:
        """Whether ``refused_total`` counts it: a change was tried, and given up.

        A change that is held up was not tried: the patcher did not look at the site, and the next
        epoch asks again.
        """
        return self.is_of_change and self is not Refusal.HELD_UP


@dataclass(frozen=True, slots=True)
class _Facts:
    meaning: str
    transient: bool = False
    foreign: bool = False
    of_change: bool = False


_FACTS: Final = MappingProxyType(
    {
        Refusal.LIVE_FLAGS: _Facts(
            "the flags are loaded right before it, for the target: a block would change them"
        ),
        Refusal.OWN: _Facts("it is optpoline.ko's own code"),
        Refusal.THUNK: _Facts("it is part of a retpoline thunk"),
        Refusal.INIT: _Facts("it is init code, whose memory is freed after boot"),
        Refusal.ENTRY: _Facts(
            "it is entry code, which may run on the page tables, stack and gs of user mode"
        ),
        Refusal.INT3_PATH: _Facts("it runs on every int3 before or after our handler"),
        Refusal.NOINSTR: _Facts("the kernel declares the code free of instrumentation (noinstr)"),
        Refusal.NOKPROBE: _Facts(
            "the kernel lets no kprobe into the function: it may run on an int3",
        ),
        Refusal.CPUIDLE: _Facts("it is idle code, where RCU does not watch (__cpuidle)"),
        Refusal.POLICY_EXCLUDED: _Facts("the policy excludes its function"),
        Refusal.POLICY_NOT_INCLUDED: _Facts("the policy is opt-in and does not include it"),
        Refusal.FOREIGN_BYTES: _Facts(
            "it holds bytes that neither the kernel nor the daemon has put there",
            foreign=True,
            of_change=True,
        ),
        Refusal.FOREIGN_BREAKPOINT: _Facts(
            "it holds a breakpoint of something else, a kprobe or a debugger",
            foreign=True,
            of_change=True,
        ),
        Refusal.TABLE_CHANGED: _Facts(
            "the guest wrote to the daemon's tables or blocks", foreign=True, of_change=True
        ),
        Refusal.UNMAPPED: _Facts("its page is not mapped any more", of_change=True),
        Refusal.SPLIT_PAGE: _Facts(
            "it crosses a page boundary into memory that is not adjacent", of_change=True
        ),
        Refusal.OUT_OF_REACH: _Facts("its target is more than 2 GiB away", of_change=True),
        Refusal.POKE_TABLE_FULL: _Facts("the module's poke table is full", of_change=True),
        Refusal.NO_RECORD_LEFT: _Facts("the module has no counter record left", of_change=True),
        Refusal.ARENA_FULL: _Facts(
            "the module's arena has no space for its block", transient=True, of_change=True
        ),
        Refusal.HELD_UP: _Facts(
            "the guest migrates or loads a module", transient=True, of_change=True
        ),
    }
)
