"""Runs a strategy: keeps its state, its shapes, and the forms that it wants.

The daemon and the replay of a trace use the same runner, so that they cannot differ.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Form, Key
from optpolined.learning.cost import Costs
from optpolined.learning.overridden import Overridden, Override
from optpolined.learning.settings import ContinuousSettings, LearningSettings, PeriodicSettings
from optpolined.learning.shape import KeyTable, Shaper, Shapes, ShapeSettings
from optpolined.learning.strategies import StrategyName, make_strategy
from optpolined.learning.strategy import (
    Decision,
    Share,
    SiteEpoch,
    SiteStatus,
    Snapshot,
)

__all__ = ("RunnerSettings", "StrategyRunner")


class RunnerSettings(Protocol):
    """What a runner needs of the section ``[learning]`` of a guest's file."""

    @property
    def strategy(self) -> StrategyName: ...
    @property
    def hysteresis(self) -> LearningSettings: ...
    @property
    def continuous(self) -> ContinuousSettings: ...
    @property
    def periodic(self) -> PeriodicSettings: ...
    @property
    def shape(self) -> ShapeSettings: ...
    @property
    def costs(self) -> Costs: ...


class StrategyRunner:
    """One guest's strategy, and the forms that its decisions become.

    The order of an epoch is :meth:`update_sites`, if modules came or went, :meth:`snapshot`,
    :meth:`decide`; :meth:`set_overrides` and :meth:`use_settings` come between two epochs.
    """

    def __init__(self, settings: RunnerSettings, strategy: StrategyName | None = None) -> None:
        """Start without sites.

        :param strategy: The strategy to run instead of the one that ``settings`` names.
        """
        shaper = Shaper(settings.shape, settings.costs)
        self._name = strategy or settings.strategy
        self._strategy = _make_overridden(settings, self._name, shaper)
        self._shapes = Shapes(shaper)
        self._state = self._strategy.initial(())
        self.wanted: dict[GuestVirtual, Form] = {}
        """The form that each site is to have; ``ORIGINAL`` where absent."""
        self.states: dict[GuestVirtual, str] = {}
        """The name of each site's state."""
        self.shares: dict[GuestVirtual, Sequence[Share]] = {}
        """The shares by which the targets of a site were chosen last."""
        self.decision = Decision()
        """The last one."""

    def update_sites(
        self, came: Mapping[GuestVirtual, Key | None], went: Iterable[GuestVirtual]
    ) -> None:
        """Add sites that may be patched, with the keys that they declare, and drop others.

        A site that is in both is a new one at the address of an old one.
        """
        went = list(went)
        self._state = self._strategy.drop_sites(self._state, went)
        self._shapes.drop_sites(went)
        for site in went:
            self.wanted.pop(site, None)
            self.states.pop(site, None)
            self.shares.pop(site, None)
        self._shapes.declare({site: key for site, key in came.items() if key is not None})
        self._state = self._strategy.add_sites(self._state, came)

    def set_overrides(self, overrides: Mapping[GuestVirtual, Override]) -> None:
        """Let the operator decide about these sites, and the strategy about all others."""
        self._state = self._strategy.set_overrides(self._state, overrides)

    def use_settings(self, settings: RunnerSettings) -> None:
        """Use other settings from now on, and keep what was learned.

        Another strategy starts from nothing, with the same sites and overrides.
        """
        sites, overrides = self.site_statuses(), self._state.overrides
        is_another = settings.strategy is not self._name
        shaper = Shaper(settings.shape, settings.costs)
        self._name = settings.strategy
        self._strategy = _make_overridden(settings, self._name, shaper)
        self._shapes.use_shaper(shaper)
        if is_another:
            self._state = self._strategy.set_overrides(self._strategy.initial(sites), overrides)
            self.wanted = dict.fromkeys(self.wanted, ORIGINAL)

    def site_statuses(self) -> Mapping[GuestVirtual, SiteStatus]:
        """Return the state of every site; its wanted form is in the strategy's terms."""
        return self._strategy.site_statuses(self._state)

    def as_decided(self, forms: Mapping[GuestVirtual, Form]) -> dict[GuestVirtual, Form]:
        """Return what stands at the sites, in the strategy's terms."""
        return self._shapes.installed(forms)

    def snapshot(
        self,
        epoch: int,
        seconds: float,
        counts: Mapping[GuestVirtual, SiteEpoch],
        tables: Mapping[GuestVirtual, KeyTable],
        forms: Mapping[GuestVirtual, Form],
        *,
        covered: AbstractSet[GuestVirtual] = frozenset(),
        census: bool = False,
    ) -> Snapshot:
        """Return one epoch as the strategy is to see it.

        :param counts: The counts, summed over the CPUs.
        :param tables: The key tables of the sites where ``LearnKeys`` stands.
        :param forms: What stood at the sites for all of the epoch.
        :param covered: The sites that learn by census.
        :param census: Whether a census counted all calls of those for all of the epoch.
        """
        seen = Snapshot(
            epoch,
            seconds,
            self._shapes.counted(counts, tables),
            self.as_decided(forms),
            covered=covered,
            census=census,
        )
        return seen.with_stubs(site for site, form in self.wanted.items() if form == LEARNING)

    def decide(self, snapshot: Snapshot) -> dict[GuestVirtual, Form]:
        """Let the strategy decide; ``wanted`` and ``states`` follow.

        :return: The sites whose wanted form this epoch changed.
        """
        self._state, decision = self._strategy.decide(self._state, snapshot)
        made = self._shapes.made(decision)
        self.wanted.update(made)
        self.states.update(decision.states)
        self.shares.update(decision.shares)
        self.decision = decision
        return made


def _make_overridden(
    settings: RunnerSettings, name: StrategyName, shaper: Shaper
) -> Overridden[Any]:
    strategy = make_strategy(
        name,
        hysteresis=settings.hysteresis,
        continuous=settings.continuous,
        periodic=settings.periodic,
        shaper=shaper,
    )
    return Overridden(strategy)
