"""A rival: relearn all the time, after Edward Cree's dynamic calls.

Cree announced them on the kernel list on 12 December 2018, in the thread "[PATCH v2 0/4] Static
calls": "brutally simple but runs continuously".  The rule is that of his patch (kernel/
dynamic_call.c, include/linux/dynamic_call.h):

1. Two targets are called directly, and each counts its calls.
2. Each CPU counts the calls of four further targets, the first that come.  A call of any other
   target is a miss.
3. When the four have more than 1000 calls on one CPU, the counts of the two and of all candidates
   are summed over the CPUs.  If the best has more than 250, the best two are patched in.  All
   counts start over, patched or not.
4. When a CPU has more than 1000 misses before that, it forgets its candidates and takes the next
   four that come.

There is no margin and no memory: a target that is ahead by one call wins.  Our counters tell less,
so some things differ here:

- Counts come summed over the CPUs, so there is one set of candidates a site, not one a CPU, and the
  thresholds are reached earlier, by up to the number of CPUs.  The sums that decide are the same.
- Counts come once an epoch, so there is one update an epoch at most, and more calls than the
  thresholds stand behind it.  Where both thresholds are passed within an epoch, the one counts that
  calls at an even pace would have passed first; within an epoch, hotter targets came first.
- ``Chain(counts_hits=True)`` counts the direct calls as Cree does, and costs what his counting
  costs, but as one number: the targets share it in proportion to the counts by which they won.  A
  current target that died lives on the hits of the other, and a challenger may for once push out
  the wrong one; the next update, which counts that one's calls by target, puts it right.  And one
  that won by a lucky epoch is believed to have that part until it loses: near ties flip, but more
  rarely than with Cree, so that the pokes of this strategy are a lower bound for his.  At inline
  sites a form that counts its hits hides the inline part: this strategy has no use of it.
- A guest's record keeps the targets that it has seen.  Where more than half of the misses of an
  epoch with a wipe found no slot, fresh candidates need a fresh record: for one epoch the site gets
  the learning form, which also counts its current targets one by one, or, where it learns already,
  the original one.  That costs two pokes, where Cree clears a few words.
- A site without a target keeps its learning stub for as long as it has none, cold or not.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple

from pydantic import ConfigDict, TypeAdapter

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.learning.settings import ContinuousSettings
from optpolined.learning.shares import Seen, look
from optpolined.learning.state import load_json
from optpolined.learning.strategy import Decision, SiteStatus, Snapshot

__all__ = ("Continuous", "ContinuousSite", "ContinuousState", "Count")


class Count(NamedTuple):
    """A target and its calls."""

    target: GuestVirtual
    calls: int


class ContinuousSite(NamedTuple):
    """One site."""

    fast: tuple[Count, ...] = ()
    """The current targets, and the counts by which they won."""
    hits: tuple[int, ...] = ()
    """The present count of each candidate."""
    candidates: tuple[Count, ...] = ()
    misses: int = 0
    wiped: bool = False
    """Waits for a fresh record."""
    reason: str = "counting"

    @property
    def state(self) -> str:
        """The reason of the state, for the operator."""
        if self.wiped:
            return "wiped"
        return "promoted" if self.fast else "learning"


@dataclass(frozen=True, slots=True)
class ContinuousState:
    """All sites."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    version: Literal[1]
    epoch: int = -1
    """The last one that was decided."""
    sites: dict[GuestVirtual, ContinuousSite] = field(default_factory=dict)
    new: tuple[GuestVirtual, ...] = ()
    """Sites that start with the next epoch."""
    wiped: tuple[GuestVirtual, ...] = ()
    """Sites that wait for a fresh record; sites that went meanwhile may still be in it."""


_JSON = TypeAdapter(ContinuousState)


def _form_of(site: ContinuousSite) -> Form:
    if site.wiped:
        return LEARNING if site.fast else ORIGINAL
    if site.fast:
        return Chain(tuple([target for target, _ in site.fast]), counts_hits=True)
    return LEARNING


class Continuous:
    """See :class:`optpolined.learning.strategy.Strategy`, and the module's docstring."""

    def __init__(self, settings: ContinuousSettings | None = None) -> None:
        self.settings = settings or ContinuousSettings()

    def initial(self, sites: Iterable[GuestVirtual]) -> ContinuousState:
        return self.add_sites(ContinuousState(version=1), sites)

    def add_sites(self, state: ContinuousState, sites: Iterable[GuestVirtual]) -> ContinuousState:
        known = state.sites.keys() | set(state.new)
        return replace(state, new=(*state.new, *sorted(set(sites) - known)))

    def drop_sites(self, state: ContinuousState, sites: Iterable[GuestVirtual]) -> ContinuousState:
        gone = set(sites)
        return replace(
            state,
            sites={address: site for address, site in state.sites.items() if address not in gone},
            new=tuple(address for address in state.new if address not in gone),
        )

    def decide(
        self, state: ContinuousState, snapshot: Snapshot
    ) -> tuple[ContinuousState, Decision]:
        if snapshot.epoch <= state.epoch:
            return state, Decision()
        sites = dict(state.sites)
        # Sorted, so that no order of the caller's mapping can show in the state.
        for address in sorted(snapshot.sites.keys() & sites.keys()):
            site = sites[address]
            if snapshot.installed.get(address, ORIGINAL) == _form_of(site) != ORIGINAL:
                seen = look(snapshot.sites[address])
                sites[address] = _SiteUpdate(site, seen, self.settings).finish()
        for address in state.wiped:
            if address in sites:
                sites[address] = sites[address]._replace(wiped=False)
        sites.update(dict.fromkeys(state.new, ContinuousSite()))
        wiped = tuple(address for address, site in sites.items() if site.wiped)
        after = ContinuousState(state.version, snapshot.epoch, sites, (), wiped)
        return after, _difference(state, after)

    def wanted(self, state: ContinuousState) -> Mapping[GuestVirtual, Form]:
        forms = {address: _form_of(site) for address, site in state.sites.items()}
        return {address: form for address, form in forms.items() if form != ORIGINAL}

    def site_statuses(self, state: ContinuousState) -> Mapping[GuestVirtual, SiteStatus]:
        told = {
            address: SiteStatus(site.state, site.reason, _form_of(site))
            for address, site in state.sites.items()
        }
        for address in state.new:
            told[address] = SiteStatus("cold", "not looked at yet", ORIGINAL)
        return told

    def dump(self, state: ContinuousState) -> str:
        return _JSON.dump_json(state).decode()

    def load(self, text: str) -> ContinuousState:
        return load_json(_JSON, text, "the continuous strategy")


def _difference(before: ContinuousState, after: ContinuousState) -> Decision:
    wanted: dict[GuestVirtual, Form] = {}
    states: dict[GuestVirtual, str] = {}
    reasons: dict[GuestVirtual, str] = {}
    for address, site in after.sites.items():
        old = before.sites.get(address)
        if site is old:
            continue
        form = _form_of(site)
        if form != (_form_of(old) if old is not None else ORIGINAL):
            wanted[address] = form
        if old is None or site.state != old.state:
            states[address] = site.state
            reasons[address] = site.reason
    return Decision(wanted, {}, states, reasons)


class _SiteUpdate:
    """Decide on one epoch of one site."""

    def __init__(self, site: ContinuousSite, seen: Seen, settings: ContinuousSettings) -> None:
        self.site = site
        self.seen = seen
        self.settings = settings
        self.hits = self._hits()
        self.without_slot = seen.slow - sum(seen.calls.values())
        self.misses = self.without_slot
        self.candidates = dict(site.candidates)
        self._count()

    def _hits(self) -> tuple[int, ...]:
        """Return the calls of each current target: its part of the direct calls, and its misses."""
        won = sum(calls for _, calls in self.site.fast)
        return tuple(
            before + self.seen.hits * calls // max(won, 1) + self.seen.calls.get(target, 0)
            for (target, calls), before in zip(self.site.fast, self.site.hits, strict=True)
        )

    def _count(self) -> None:
        """Give the calls of the other targets to candidates, the hottest first, else to misses."""
        fast = {target for target, _ in self.site.fast}
        for target, calls in sorted(self.seen.calls.items(), key=lambda item: (-item[1], item[0])):
            if target in fast:
                continue
            if target in self.candidates or len(self.candidates) < self.settings.candidates:
                self.candidates[target] = self.candidates.get(target, 0) + calls
            else:
                self.misses += calls

    def finish(self) -> ContinuousSite:
        s = self.settings
        before = sum(calls for _, calls in self.site.candidates)
        counted = sum(self.candidates.values())
        misses = self.site.misses + self.misses
        due = counted > s.update_calls
        if due and misses > s.wipe_misses:
            # Which was passed first at an even pace: (limit - before) / gained, multiplied out.
            due = (s.update_calls - before) * self.misses <= (s.wipe_misses - self.site.misses) * (
                counted - before
            )
        if due:
            return self._update()
        candidates = tuple(Count(target, calls) for target, calls in self.candidates.items())
        if misses > s.wipe_misses:
            return self.site._replace(
                hits=self.hits,
                candidates=(),
                misses=0,
                wiped=2 * self.without_slot > self.seen.slow and not self.site.wiped,
                reason=f"wiped after {misses} misses",
            )
        return self.site._replace(hits=self.hits, candidates=candidates, misses=misses)

    def _update(self) -> ContinuousSite:
        s, site = self.settings, self.site
        places = [
            Count(target, calls) for (target, _), calls in zip(site.fast, self.hits, strict=True)
        ]
        places += [Count(*item) for item in sorted(self.candidates.items())]
        # Sorting is stable: of equals, a current target stays.
        places.sort(key=lambda count: count.calls, reverse=True)
        best = tuple(count for count in places[: s.fast_targets] if count.calls > 0)
        fast, reason = site.fast, f"no target had more than {s.patch_calls} calls"
        if best[0].calls > s.patch_calls:
            fast = best
            reason = f"won with {' and '.join(str(calls) for _, calls in best)} calls"
        return ContinuousSite(fast, (0,) * len(fast), reason=reason)
