"""The strategy over one guest, from its counters to the forms that sites are to have."""

from collections.abc import Iterable, Mapping, Sequence

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Form, Key, LearnKeys
from optpolined.control.gc_pause import collector_rests
from optpolined.control.recorder import Recorder
from optpolined.kernel.sites.attribution import Attributed
from optpolined.learning.config import LearningConfig
from optpolined.learning.overridden import Override
from optpolined.learning.runner import StrategyRunner
from optpolined.learning.strategy import Decision, Share, SiteEpoch, SiteStatus, Snapshot
from optpolined.patching.inline_sites import Found, Unsettled
from optpolined.session.session import Session
from optpolined.session.survey import ModuleChange

__all__ = ("Learner",)


class Learner:
    """Feeds the strategy from the guest's counters, and a recorder where one is given."""

    def __init__(
        self, config: LearningConfig, session: Session, recorder: Recorder | None = None
    ) -> None:
        self._session = session
        self._recorder = recorder
        self._runner = StrategyRunner(config)
        self._config = config
        self._by_stub: set[GuestVirtual] = set()
        self._overridden: frozenset[GuestVirtual] = frozenset()
        self._covered = self._cover()
        self._follow(session.survey.inventory.eligible, ())

    @property
    def covered(self) -> frozenset[GuestVirtual]:
        """The sites that learn by census, and never by a stub of their own."""
        return self._covered

    def _cover(self) -> frozenset[GuestVirtual]:
        if not self._config.census.enabled:
            return frozenset()
        return frozenset(self._session.census.covered - self._by_stub)

    @property
    def asks_for_census(self) -> bool:
        """Whether a site wants to learn that only learns by census."""
        return any(form == LEARNING for site, form in self.wanted.items() if site in self.covered)

    @property
    def to_poke(self) -> Mapping[GuestVirtual, Form]:
        """The form that each site is to have in the guest's text.

        A site that learns by census learns as it was built.
        """
        covered = self.covered
        return {
            site: ORIGINAL if form == LEARNING and site in covered else form
            for site, form in self.wanted.items()
        }

    @property
    def wanted(self) -> Mapping[GuestVirtual, Form]:
        """The form that each site is to have; ``ORIGINAL`` where absent."""
        return self._runner.wanted

    @property
    def states(self) -> Mapping[GuestVirtual, str]:
        """The name of each site's state."""
        return self._runner.states

    @property
    def shares(self) -> Mapping[GuestVirtual, Sequence[Share]]:
        """The shares by which the targets of a site were chosen last."""
        return self._runner.shares

    @property
    def decision(self) -> Decision:
        """What the last epoch changed."""
        return self._runner.decision

    def relearn(self, site: GuestVirtual) -> None:
        """Drop what was learned of a site, as if its module had been loaded anew."""
        self._follow((site,), (site,))

    def follow_modules(self, change: ModuleChange) -> None:
        """Take in the sites of loaded modules, and drop those of unloaded ones."""
        self._by_stub.difference_update(change.went)
        self._covered = self._cover()
        self._follow(change.came, change.went)

    def update_coverage(self) -> None:
        """Let the sites that no census covers any more begin anew, each with a stub of its own.

        To be called when censuses may have become possible or impossible.
        """
        before, self._covered = self._covered, self._cover()
        self._begin_anew(before - self._covered)

    def _learn_by_stub(self, sites: Iterable[GuestVirtual]) -> None:
        """Let sites that no census can be certain of begin anew, each with a stub of its own."""
        self._by_stub.update(self._undecided(self.covered.intersection(sites)))
        self.update_coverage()

    def _begin_anew(self, sites: Iterable[GuestVirtual]) -> None:
        new = self._undecided(sites)
        self._follow(new, new)

    def _undecided(self, sites: Iterable[GuestVirtual]) -> list[GuestVirtual]:
        """Return those of ``sites`` that neither the operator nor the strategy gave a target."""
        return sorted(
            site
            for site in sites
            if site not in self._overridden
            and not getattr(self.wanted.get(site, ORIGINAL), "targets", ())
        )

    def _follow(self, came: Iterable[GuestVirtual], went: Iterable[GuestVirtual]) -> None:
        eligible = self._session.survey.inventory.eligible
        keys: dict[GuestVirtual, Key | None] = {site: eligible[site].key for site in came}
        self._runner.update_sites(keys, went)
        if self._recorder is not None:
            self._recorder.note_sites(keys, went)

    def override_sites(self, overrides: Mapping[GuestVirtual, Override]) -> None:
        """Let the operator decide about these sites, and the strategy about all others."""
        self._overridden = frozenset(overrides)
        self._runner.set_overrides(overrides)
        if self._recorder is not None:
            self._recorder.note_overrides(overrides)

    def reload(self, config: LearningConfig) -> None:
        """Use other settings from the next epoch on."""
        self._config = config
        self._runner.use_settings(config)
        if self._recorder is not None:
            self._recorder.note_settings(config)
        self.update_coverage()

    def site_statuses(self) -> Mapping[GuestVirtual, SiteStatus]:
        """Return the state of every site; the wanted form is the one that the strategy decided."""
        return self._runner.site_statuses()

    def as_decided(self, forms: Mapping[GuestVirtual, Found]) -> dict[GuestVirtual, Form]:
        """Return the forms of the sites as the strategy decided them, without foreign bytes."""
        return self._runner.as_decided(_settled(forms))

    def snapshot(
        self,
        epoch: int,
        seconds: float,
        forms: Mapping[GuestVirtual, Found],
        census: Attributed | None = None,
    ) -> Snapshot:
        """Read the counters, and return the epoch as the strategy is to see it.

        :param forms: The forms that the sites had for all of the epoch.
        :param census: What a census counted that was taken for all of the epoch.
        :raise TranslationError: the counters are not mapped any more.
        """
        by_cpu: dict[int, dict[GuestVirtual, SiteEpoch]] = {}
        counts = self._session.counters.count(None if self._recorder is None else by_cpu)
        tables = {
            site: self._session.counters.key_targets(site)
            for site, form in forms.items()
            if isinstance(form, LearnKeys)
        }
        settled = _settled(forms)
        if census is not None:
            self._learn_by_stub(self._uncertain(census))
            counted = self._of_census(census, settled)
            counts = {**counts, **counted}
            # What their records counted as well is not part of it, neither here nor in the trace.
            for gains in by_cpu.values():
                for site in counted.keys() & gains.keys():
                    del gains[site]
            by_cpu.setdefault(0, {}).update(counted)
        covered = self.covered
        if self._recorder is not None:
            self._recorder.note_counts(
                epoch,
                seconds,
                by_cpu,
                tables,
                settled,
                covered=covered,
                census=census is not None,
            )
        return self._runner.snapshot(
            epoch, seconds, counts, tables, settled, covered=covered, census=census is not None
        )

    def _uncertain(self, census: Attributed) -> list[GuestVirtual]:
        """Return the sites that were called often, but of which a census says too little."""
        least = self._config.hysteresis.census_min_calls
        calls = {**census.nominated, **census.suspects}
        return sorted(site for site, count in calls.items() if count >= least)

    def _of_census(
        self, census: Attributed, forms: Mapping[GuestVirtual, Form]
    ) -> dict[GuestVirtual, SiteEpoch]:
        """Return the calls of the covered sites that stood as they were built.

        The misses of a promoted site pass the thunks too, and its record counts them.
        """
        is_target = self._session.counters.is_target
        counts = {}
        for site, calls in census.sites.items():
            if site in self.covered and forms.get(site, ORIGINAL) == ORIGINAL:
                known = {target: count for target, count in calls.items() if is_target(target)}
                counts[site] = SiteEpoch(known, sum(calls.values()) - sum(known.values()))
        return counts

    def decide(self, snapshot: Snapshot) -> None:
        """Let the strategy decide; ``wanted`` and ``states`` follow."""
        with collector_rests():
            made = self._runner.decide(snapshot)
        if self._recorder is not None:
            self._recorder.write_epoch(made)


def _settled(forms: Mapping[GuestVirtual, Found]) -> dict[GuestVirtual, Form]:
    return {
        site: form
        for site, form in forms.items()
        if form is not None and not isinstance(form, Unsettled)
    }
