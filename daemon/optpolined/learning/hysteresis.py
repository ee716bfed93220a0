"""The default strategy: two thresholds, agreement over epochs, margins, and pauses that double.

The work of an epoch is proportional to the sites that counted something and to those whose deadline
it is; the others are only copied.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import ORIGINAL, Form
from optpolined.learning.chains import audit_chain, close_audit, watch
from optpolined.learning.settings import LearningSettings
from optpolined.learning.shape import Shaper
from optpolined.learning.shares import look
from optpolined.learning.state import (
    HysteresisPhase,
    HysteresisSite,
    HysteresisState,
    dump,
    form_of,
    load,
    stands,
)
from optpolined.learning.strategy import Decision, Share, SiteEpoch, SiteStatus, Snapshot
from optpolined.learning.windows import Now, close_window, first_window, learn, open_window

__all__ = ("Hysteresis",)

_SECONDS = (0.001, 1e6)
"""The possible lengths of an epoch, in seconds."""


class Hysteresis:
    """See :class:`optpolined.learning.strategy.Strategy`; the package's docstring draws it."""

    def __init__(
        self, settings: LearningSettings | None = None, shaper: Shaper | None = None
    ) -> None:
        """:param shaper: Says whether targets pay."""
        self.settings = settings or LearningSettings()
        self.shaper = shaper or Shaper()

    def initial(self, sites: Iterable[GuestVirtual]) -> HysteresisState:
        return self.add_sites(HysteresisState(version=1), sites)

    def add_sites(self, state: HysteresisState, sites: Iterable[GuestVirtual]) -> HysteresisState:
        known = state.sites.keys() | set(state.new)
        return replace(state, new=(*state.new, *sorted(set(sites) - known)))

    def drop_sites(self, state: HysteresisState, sites: Iterable[GuestVirtual]) -> HysteresisState:
        gone = set(sites)
        return replace(
            state,
            sites={address: site for address, site in state.sites.items() if address not in gone},
            new=tuple(address for address in state.new if address not in gone),
        )

    def decide(
        self, state: HysteresisState, snapshot: Snapshot
    ) -> tuple[HysteresisState, Decision]:
        if snapshot.epoch <= state.epoch:
            return state, Decision()
        seconds = snapshot.seconds
        step = _Step(state, Now(snapshot.epoch, seconds, self.settings, self.shaper))
        if _SECONDS[0] <= seconds <= _SECONDS[1]:
            step.count(snapshot.sites, snapshot.installed)
        step.meet_deadlines()
        step.open_first_windows()
        return step.finish()

    def wanted(self, state: HysteresisState) -> Mapping[GuestVirtual, Form]:
        forms = {address: form_of(site) for address, site in state.sites.items()}
        return {address: form for address, form in forms.items() if form != ORIGINAL}

    def site_statuses(self, state: HysteresisState) -> Mapping[GuestVirtual, SiteStatus]:
        told = {
            address: SiteStatus(site.phase.value, site.reason, form_of(site))
            for address, site in state.sites.items()
        }
        for address in state.new:
            told[address] = SiteStatus(HysteresisPhase.COLD.value, "not looked at yet", ORIGINAL)
        return told

    def dump(self, state: HysteresisState) -> str:
        return dump(state)

    def load(self, text: str) -> HysteresisState:
        return load(text)


_SCATTER = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio: spreads neighbouring addresses evenly."""


class _Step:
    """One decision in progress; the old state is not changed."""

    def __init__(self, state: HysteresisState, now: Now) -> None:
        self.before = state
        self.now = now
        self.sites = dict(state.sites)
        self.due = dict(state.due)
        self.scheduled: dict[int, list[GuestVirtual]] = {}
        self.changed: dict[GuestVirtual, None] = {}

    def count(
        self, counts: Mapping[GuestVirtual, SiteEpoch], installed: Mapping[GuestVirtual, Form]
    ) -> None:
        """Take in the counts of sites whose wanted form stood: a poke may have failed."""
        sites, now = self.sites, self.now
        for address, counted in counts.items():
            site = sites.get(address)
            if site is None or not stands(site, installed.get(address, ORIGINAL)):
                continue
            if site.belief is None:
                after = learn(site, look(counted), now)
            elif site.window is None:
                after = watch(site, look(counted), now)
            else:
                after = audit_chain(site, look(counted), now)
            if after is not site:
                self.put(address, after)

    def meet_deadlines(self) -> None:
        # Sites without calls share one state, so one result serves thousands of them.  The key
        # holds an identity, so the result holds its object.
        answers: dict[tuple[int, int], tuple[HysteresisSite, HysteresisSite]] = {}
        for epoch in sorted(epoch for epoch in self.due if epoch <= self.now.epoch):
            for address in self.due.pop(epoch):
                site = self.sites.get(address)
                if site is None or site.deadline != epoch:
                    continue
                key = (id(site), self.turn(address))
                if key not in answers:
                    answers[key] = (site, self.end(site, key[1]))
                self.put(address, answers[key][1])

    def turn(self, address: GuestVirtual) -> int:
        """Return the epoch of a cold site's next window; the sites take turns."""
        settings = self.now.settings
        turns = ceil(1 / settings.reopen_share)
        mine = (address * _SCATTER >> 32) % turns * settings.reopen_epochs
        soonest = self.now.epoch + settings.reopen_epochs
        return soonest + (mine - soonest) % (turns * settings.reopen_epochs)

    def end(self, site: HysteresisSite, turn: int) -> HysteresisSite:
        match site.phase:
            case HysteresisPhase.LEARNING | HysteresisPhase.RELEARNING:
                ended = close_window(site, self.now)
                return (
                    ended._replace(deadline=turn) if ended.phase is HysteresisPhase.COLD else ended
                )
            case HysteresisPhase.MISSING:
                return close_audit(site, self.now)
            case HysteresisPhase.QUARANTINE:
                return open_window(site, self.now, HysteresisPhase.RELEARNING, "after quarantine")
            case _:
                return open_window(site, self.now, HysteresisPhase.LEARNING, "another window")

    def open_first_windows(self) -> None:
        site = first_window(self.now)
        for address in self.before.new:
            self.put(address, site)

    def put(self, address: GuestVirtual, site: HysteresisSite) -> None:
        before = self.sites.get(address)
        if site is before:
            return
        self.sites[address] = site
        if before is not None and site.phase is before.phase and site.deadline == before.deadline:
            return
        self.changed[address] = None
        if site.deadline is not None:
            self.scheduled.setdefault(site.deadline, []).append(address)

    def finish(self) -> tuple[HysteresisState, Decision]:
        # Sorted, so that no order of the caller's mapping can show in the state.
        for epoch, addresses in self.scheduled.items():
            self.due[epoch] = (*self.due.get(epoch, ()), *sorted(addresses))
        state = HysteresisState(
            version=self.before.version,
            epoch=self.now.epoch,
            sites=self.sites,
            due=self.due,
        )
        wanted: dict[GuestVirtual, Form] = {}
        shares: dict[GuestVirtual, Sequence[Share]] = {}
        states: dict[GuestVirtual, str] = {}
        reasons: dict[GuestVirtual, str] = {}
        for address in self.changed:
            old, new = self.before.sites.get(address), self.sites[address]
            form = form_of(new)
            if not stands(old, form) if old else form != ORIGINAL:
                wanted[address] = form
                if new.phase is HysteresisPhase.PROMOTED and new.belief is not None:
                    shares[address] = new.belief.chain
            if old is None or old.phase is not new.phase:
                states[address] = new.phase.value
                reasons[address] = new.reason
        return state, Decision(wanted, shares, states, reasons)
