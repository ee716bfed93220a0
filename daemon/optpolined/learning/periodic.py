"""A rival: learn, patch, and train again at intervals, after Nadav Amit's relpolines.

Amit posted them on the kernel list as "[RFC PATCH 0/5] x86: dynamic indirect call promotion" on
17 October 2018, and as "[RFC v2 0/6] x86: dynamic indirect branch promotion" (by then optpolines)
on 31 December 2018.  The cover letters say: during training, the slow path calls a function that
saves source and target of each call in a hash table and counts how often; the most common target is
patched into the fast path; some logic retrains, by a policy that "may need to be refined"; version
2 can hold several targets out of line, and leaves open whether to learn periodically.

Here a training lasts ``learn_epochs`` at most.  Meanwhile a worker runs every ``worker_epochs``,
and patches in the most frequent target of each site that was called.  A site that was not called is
the original again at the end.  The next training starts ``retrain_epochs`` after the start of the
last one, from nothing.  There are no shares, no margins and no pauses: one call is enough
(``min_calls``), and a site with a hundred targets gets one of them.

Our learning stubs are the per-CPU hash: a record of 7 targets a site and CPU, summed by the daemon.
Two things differ.  A training puts the learning form in place of the chain, while a relpoline keeps
its fast path: all calls are slow for as long, but old and new targets are counted alike.  And the
calls of targets that find no slot count for no target; a hash may lose some too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, Literal, NamedTuple

from pydantic import ConfigDict, TypeAdapter

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.learning.settings import PeriodicSettings
from optpolined.learning.shape import Shaper
from optpolined.learning.shares import look
from optpolined.learning.state import load_json
from optpolined.learning.strategy import Decision, Share, SiteStatus, Snapshot

__all__ = ("Periodic", "PeriodicPhase", "PeriodicSite", "PeriodicState")


class PeriodicPhase(StrEnum):
    """Where a site stands."""

    IDLE = "idle"
    LEARNING = "learning"
    PROMOTED = "promoted"


class PeriodicSite(NamedTuple):
    """One site."""

    phase: PeriodicPhase
    reason: str
    calls: tuple[tuple[GuestVirtual, int], ...] = ()
    """While learning, the calls of this training by target, by rising address."""
    total: int = 0
    """The same, with the calls of targets that found no slot."""
    chain: tuple[Share, ...] = ()
    """While promoted, its targets, hottest first."""


@dataclass(frozen=True, slots=True)
class PeriodicState:
    """All sites."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    version: Literal[1]
    epoch: int = -1
    """The last one that was decided."""
    since: int | None = None
    """The epoch that began the last training."""
    sites: dict[GuestVirtual, PeriodicSite] = field(default_factory=dict)
    new: tuple[GuestVirtual, ...] = ()
    """Sites that join with the next epoch."""


_JSON = TypeAdapter(PeriodicState)
_LEARN = PeriodicSite(PeriodicPhase.LEARNING, "training")
_LATE = PeriodicSite(PeriodicPhase.IDLE, "came after the training")
_UNCALLED = PeriodicSite(PeriodicPhase.IDLE, "too few calls in the training")


def _form_of(site: PeriodicSite) -> Form:
    if site.phase is PeriodicPhase.LEARNING:
        return LEARNING
    if site.chain:
        return Chain(tuple([target for target, _ in site.chain]))
    return ORIGINAL


class Periodic:
    """See :class:`optpolined.learning.strategy.Strategy`, and the module's docstring."""

    def __init__(
        self, settings: PeriodicSettings | None = None, shaper: Shaper | None = None
    ) -> None:
        """:param shaper: Says how many targets a form can have."""
        self.settings = settings or PeriodicSettings()
        self._places = min(self.settings.max_targets, (shaper or Shaper()).targets_max)

    def initial(self, sites: Iterable[GuestVirtual]) -> PeriodicState:
        return self.add_sites(PeriodicState(version=1), sites)

    def add_sites(self, state: PeriodicState, sites: Iterable[GuestVirtual]) -> PeriodicState:
        known = state.sites.keys() | set(state.new)
        return replace(state, new=(*state.new, *sorted(set(sites) - known)))

    def drop_sites(self, state: PeriodicState, sites: Iterable[GuestVirtual]) -> PeriodicState:
        gone = set(sites)
        return replace(
            state,
            sites={address: site for address, site in state.sites.items() if address not in gone},
            new=tuple(address for address in state.new if address not in gone),
        )

    def decide(self, state: PeriodicState, snapshot: Snapshot) -> tuple[PeriodicState, Decision]:
        epoch = snapshot.epoch
        if epoch <= state.epoch:
            return state, Decision()
        sites = dict(state.sites)
        since = state.since
        if since is None or epoch - since >= self.settings.retrain_epochs:
            since = epoch
            sites = dict.fromkeys(sites, _LEARN)
        else:
            self._count(sites, snapshot)
            self._work(sites, state.epoch - since, epoch - since)
        joins = _LEARN if epoch - since < self.settings.learn_epochs else _LATE
        sites.update(dict.fromkeys(state.new, joins))
        after = PeriodicState(state.version, epoch, since, sites)
        return after, _difference(state, after)

    def _count(self, sites: dict[GuestVirtual, PeriodicSite], snapshot: Snapshot) -> None:
        for address in snapshot.sites.keys() & sites.keys():
            site = sites[address]
            if site.phase is not PeriodicPhase.LEARNING:
                continue
            if snapshot.installed.get(address, ORIGINAL) != LEARNING:
                continue
            seen = look(snapshot.sites[address])
            calls = dict(site.calls)
            for target, count in seen.calls.items():
                calls[target] = calls.get(target, 0) + count
            sites[address] = site._replace(
                calls=tuple(sorted(calls.items())), total=site.total + seen.slow
            )

    def _work(self, sites: dict[GuestVirtual, PeriodicSite], before: int, now: int) -> None:
        """Let the worker run when it is due, and the training end.

        :param before: Epochs since the training began, at the last decision.
        """
        s = self.settings
        if before >= s.learn_epochs:
            return
        over = now >= s.learn_epochs
        if not over and now // s.worker_epochs == before // s.worker_epochs:
            return
        for address, site in sites.items():
            if site.phase is PeriodicPhase.LEARNING:
                if site.calls and site.total >= s.min_calls:
                    sites[address] = self._patched(site)
                elif over:
                    sites[address] = _UNCALLED

    def _patched(self, site: PeriodicSite) -> PeriodicSite:
        hottest = sorted(site.calls, key=lambda item: (-item[1], item[0]))[: self._places]
        chain = tuple((target, calls / site.total) for target, calls in hottest)
        share = sum([share for _, share in chain])
        reason = f"{len(chain)} targets take {share:.0%} of {site.total} calls"
        return PeriodicSite(PeriodicPhase.PROMOTED, reason, chain=chain)

    def wanted(self, state: PeriodicState) -> Mapping[GuestVirtual, Form]:
        forms = {address: _form_of(site) for address, site in state.sites.items()}
        return {address: form for address, form in forms.items() if form != ORIGINAL}

    def site_statuses(self, state: PeriodicState) -> Mapping[GuestVirtual, SiteStatus]:
        told = {
            address: SiteStatus(site.phase.value, site.reason, _form_of(site))
            for address, site in state.sites.items()
        }
        for address in state.new:
            told[address] = SiteStatus(PeriodicPhase.IDLE.value, "not looked at yet", ORIGINAL)
        return told

    def dump(self, state: PeriodicState) -> str:
        return _JSON.dump_json(state).decode()

    def load(self, text: str) -> PeriodicState:
        return load_json(_JSON, text, "the periodic strategy")


def _difference(before: PeriodicState, after: PeriodicState) -> Decision:
    wanted: dict[GuestVirtual, Form] = {}
    shares: dict[GuestVirtual, Sequence[Share]] = {}
    states: dict[GuestVirtual, str] = {}
    reasons: dict[GuestVirtual, str] = {}
    for address, site in after.sites.items():
        old = before.sites.get(address)
        if old is not None and site.phase is old.phase:
            continue
        form = _form_of(site)
        if form != (_form_of(old) if old is not None else ORIGINAL):
            wanted[address] = form
            if site.chain:
                shares[address] = site.chain
        states[address] = site.phase.value
        reasons[address] = site.reason
    return Decision(wanted, shares, states, reasons)
