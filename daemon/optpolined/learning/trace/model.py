"""What learning saw of one guest, from attach to detach.

A trace holds for each epoch the inputs of the strategy, CPU by CPU, and its decisions.  The calls
that a census counted are those of CPU 0, because the sites of a census are told by no CPU.  A
made-up trace holds the calls of a guest whose sites all learn all the time: every call is counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import ORIGINAL, Form, Key
from optpolined.learning.config import LearningConfig
from optpolined.learning.overridden import Override
from optpolined.learning.shape import KeyTable
from optpolined.learning.strategies import StrategyName
from optpolined.learning.strategy import SiteEpoch

__all__ = ("ByCpu", "Said", "Trace", "TraceEpoch", "TraceHeader", "summed")

ByCpu = Mapping[int, SiteEpoch]
"""What the record of one site gained in one epoch, by the CPU's number; others gained nothing."""


Said = Mapping[GuestVirtual, Override] | LearningConfig
"""What the operator changed while the guest ran: all overrides that hold from then on, or
settings."""


@dataclass(frozen=True, slots=True)
class TraceHeader:
    """The origin of a trace."""

    release: str
    """The kernel's release, as uname prints it; for a made-up trace, the name of its scenario."""
    build_id: str = ""
    """The kernel's build id in hexadecimal; empty if it has none."""
    strategy: StrategyName | None = None
    """The strategy at the start; ``None`` for a made-up trace."""
    learning: LearningConfig = field(default_factory=LearningConfig)
    """Its settings then, and those of the other strategies."""


@dataclass(frozen=True, slots=True)
class TraceEpoch:
    """One epoch."""

    epoch: int
    seconds: float
    counts: Mapping[GuestVirtual, ByCpu]
    """Only the sites that counted anything."""
    came: Mapping[GuestVirtual, Key | None] = field(default_factory=dict)
    """Sites that may be patched from this epoch on, with the keys that they declare."""
    went: Sequence[GuestVirtual] = ()
    """Sites that may no longer be patched; they were dropped before the new ones were added."""
    said: Sequence[Said] = ()
    """The operator's changes since the epoch before, in this order, after sites went and came."""
    forms: Mapping[GuestVirtual, Form] = field(default_factory=dict)
    """What stood at the sites for all of the epoch, if it differs from the epoch before."""
    tables: Mapping[GuestVirtual, KeyTable] = field(default_factory=dict)
    """The key tables of the sites that learned their keys."""
    wanted: Mapping[GuestVirtual, Form] = field(default_factory=dict)
    """What the strategy decided at the end of the epoch."""
    covered: Sequence[GuestVirtual] = ()
    """Sites that learn by census from this epoch on; a site that went does so no longer."""
    uncovered: Sequence[GuestVirtual] = ()
    """Sites that learned by census until now, and learn by a stub from this epoch on."""
    census: bool = False
    """Whether a census counted all calls of the covered sites that stood as they were built."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A guest from attach to detach."""

    header: TraceHeader
    epochs: Sequence[TraceEpoch]
    names: Mapping[GuestVirtual, str] = field(default_factory=dict)
    """The symbols of the sites and targets that occur."""
    is_cut: bool = False
    """Whether the end is missing: the writer was killed, or its disk was full."""

    def standing(self) -> Iterator[tuple[TraceEpoch, dict[GuestVirtual, Form]]]:
        """Yield each epoch and what stood at the sites then; the dictionary is reused."""
        forms: dict[GuestVirtual, Form] = {}
        for epoch in self.epochs:
            for site in epoch.went:
                forms.pop(site, None)
            for site, form in epoch.forms.items():
                if form == ORIGINAL:
                    forms.pop(site, None)
                else:
                    forms[site] = form
            yield epoch, forms

    def covering(self) -> Iterator[frozenset[GuestVirtual]]:
        """Yield the sites that learn by census in each epoch; the same object until it changes."""
        covered: frozenset[GuestVirtual] = frozenset()
        for epoch in self.epochs:
            lost = covered.intersection((*epoch.went, *epoch.uncovered))
            if lost or epoch.covered:
                covered = (covered - lost).union(epoch.covered)
            yield covered


def summed(by_cpu: ByCpu) -> SiteEpoch:
    """Return what all CPUs gained together, as a strategy gets it."""
    calls: dict[GuestVirtual, int] = {}
    for gain in by_cpu.values():
        for target, count in gain.calls.items():
            calls[target] = calls.get(target, 0) + count
    gains = by_cpu.values()
    return SiteEpoch(calls, sum(gain.other for gain in gains), sum(gain.hits for gain in gains))
