"""Computes what a strategy achieved on a trace, and what it cost.

*Calls saved* are cycles by the cost model: each call costs what its site's form costs for the calls
of the epoch, and is compared with a retpoline.  A call of a site that learns costs more than one.

*Stop time* is a model of protocol `breakpoint`, after what was measured with a persistent gdbstub
connection under TCG: a stop that writes 12 sites takes 0.4 ms and one that writes 1000 takes
3.6 ms, so a stop takes 0.36 ms and 3.24 us more for each site.  The pokes of an epoch are cut into
slices that stay under a budget of 1 ms, and each slice takes three stops.

A *census* is a run of epochs in which one counted: two stops, each of which writes the heads of the
thunks.  Meanwhile a call of a covered site that stands as it was built costs what a learning call
costs.  A covered site that is to learn is not poked.

A *flip* gives a site other targets than it last had; their order does not matter.  To lose its
targets, or to get them back, is not a flip.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from math import ceil

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Form, Original
from optpolined.lab.actual_calls import UNKNOWN_TARGET, Calls, EpochCalls
from optpolined.learning.cost import Costs
from optpolined.learning.strategy import Share

__all__ = ("Score", "TargetShares", "stop_seconds", "target_shares")

_STOP_SECONDS = 0.36e-3
_SITE_SECONDS = 3.24e-6
_BUDGET_SECONDS = 1e-3
_STOPS = 3
_THUNK_HEADS = 15
"""One for each register but %rsp."""
_SLICE_SITES = int((_BUDGET_SECONDS - _STOP_SECONDS) / _SITE_SECONDS)


@dataclass(frozen=True, slots=True)
class TargetShares:
    """The calls of a site in one epoch by target, summed over the CPUs."""

    calls: int
    shares: tuple[Share, ...]
    """The hottest first; calls without a noted target are left out."""


def target_shares(by_cpu: Calls) -> TargetShares:
    """Sum up the calls of a site."""
    counts: dict[GuestVirtual, int] = {}
    for made in by_cpu.values():
        for target, number in made.items():
            counts[target] = counts.get(target, 0) + number
    total = sum(counts.values())
    counts.pop(UNKNOWN_TARGET, None)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return TargetShares(
        total, tuple((target, number / total) for target, number in ranked if number)
    )


def stop_seconds(sites: int) -> float:
    """Return how long the guest is stopped to change so many sites at once."""
    slices = ceil(sites / _SLICE_SITES)
    return _STOPS * (slices * _STOP_SECONDS + sites * _SITE_SECONDS)


@dataclass(slots=True)
class Score:
    """The result of one strategy; lists have an element for each epoch."""

    costs: Costs
    calls: list[int] = field(default_factory=list)
    direct: list[int] = field(default_factory=list)
    """Calls that a chain or tree made direct."""
    pokes: list[int] = field(default_factory=list)
    """Sites that were changed at the end of the epoch."""
    saved_cycles: float = 0.0
    flips: int = 0
    stop_seconds: float = 0.0
    seconds: float = 0.0
    censuses: int = 0
    first_promotion_seconds: float | None = None
    """Seconds from the start; ``None`` if no site was promoted."""
    _targets: dict[GuestVirtual, frozenset[GuestVirtual]] = field(default_factory=dict)
    _in_census: bool = False

    def epoch(
        self,
        actual: EpochCalls,
        seconds: float,
        forms: Mapping[GuestVirtual, Form],
        census: AbstractSet[GuestVirtual] | None = None,
    ) -> None:
        """Add an epoch in which these ``forms`` stood.

        :param census: The sites that a census covered; ``None`` if none was taken.
        """
        self._add_census(is_taken=census is not None)
        calls = direct = 0
        for site, by_cpu in actual.items():
            seen = target_shares(by_cpu)
            form = forms.get(site, ORIGINAL)
            calls += seen.calls
            if census is not None and site in census and isinstance(form, Original):
                form = LEARNING
            if isinstance(form, Original) or not seen.calls:
                continue
            saved = self.costs.retpoline_cycles - self.costs.form(form, seen.shares)
            self.saved_cycles += saved * seen.calls
            targets = set(form.targets)
            direct += sum(
                number
                for made in by_cpu.values()
                for target, number in made.items()
                if target in targets
            )
        self.calls.append(calls)
        self.direct.append(direct)
        self.seconds += seconds

    def _add_census(self, *, is_taken: bool) -> None:
        if is_taken and not self._in_census:
            self.censuses += 1
            self.stop_seconds += 2 * (_STOP_SECONDS + _THUNK_HEADS * _SITE_SECONDS)
        self._in_census = is_taken

    def poke(self, changes: Mapping[GuestVirtual, Form]) -> None:
        """Add the changes at the end of the epoch."""
        self.pokes.append(len(changes))
        self.stop_seconds += stop_seconds(len(changes))
        for site, form in changes.items():
            targets = frozenset(() if isinstance(form, Original) else form.targets)
            if not targets:
                continue
            if self._targets.get(site, targets) != targets:
                self.flips += 1
            self._targets[site] = targets
            if self.first_promotion_seconds is None:
                self.first_promotion_seconds = self.seconds

    @property
    def coverage(self) -> float:
        """Direct calls over all calls, 0 to 1; 0 without calls."""
        calls = sum(self.calls)
        return sum(self.direct) / calls if calls else 0.0
