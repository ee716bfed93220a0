"""What the strategy wants, in forms that sites can really have."""

from collections.abc import Mapping

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Form, Key, LearnKeys
from optpolined.config import LearningConfig
from optpolined.kernel.sites import Site
from optpolined.learning.policy import Governed, Ruling
from optpolined.learning.shape import Shaper, Shapes
from optpolined.learning.strategies import make_strategy
from optpolined.learning.strategy import SiteEpoch, SiteStatus, Snapshot
from optpolined.service.collector import collector_rests
from optpolined.service.inline import Found, Unsettled
from optpolined.service.session import Session
from optpolined.service.survey import ModuleChange

__all__ = ("Learner",)


class Learner:
    """The strategy of one guest, and the forms that its decisions become."""

    def __init__(self, config: LearningConfig, session: Session) -> None:
        self._session = session
        shaper = Shaper(config.shape, config.costs)
        self._shapes = Shapes(shaper)
        self._strategy = Governed(
            make_strategy(
                config.strategy,
                hysteresis=config.hysteresis,
                continuous=config.continuous,
                epoch=config.epoch,
                shaper=shaper,
            )
        )
        eligible = session.survey.inventory.eligible
        self._shapes.declare(_keys(eligible))
        self._state = self._strategy.initial(eligible)
        self.wanted: dict[GuestVirtual, Form] = {}
        """The form that each site is to have; ``ORIGINAL`` where absent."""
        self.states: dict[GuestVirtual, str] = {}
        """The name of each site's state."""

    def follow(self, change: ModuleChange) -> None:
        """Sites came and went with their modules."""
        self._state = self._strategy.forget(self._state, change.went)
        self._shapes.forget(change.went)
        for site in change.went:
            self.wanted.pop(site, None)
            self.states.pop(site, None)
        eligible = self._session.survey.inventory.eligible
        self._shapes.declare(_keys({site: eligible[site] for site in change.came}))
        self._state = self._strategy.add(self._state, change.came)

    def rule(self, rulings: Mapping[GuestVirtual, Ruling]) -> None:
        """Decide about these sites, and no others, by what somebody said."""
        self._state = self._strategy.rule(self._state, rulings)

    def status(self) -> Mapping[GuestVirtual, SiteStatus]:
        """Where every site stands; its wanted form in the strategy's words."""
        return self._strategy.status(self._state)

    def told(self, forms: Mapping[GuestVirtual, Found]) -> dict[GuestVirtual, Form]:
        """What stands at the sites, in the strategy's words; without what is nobody's form."""
        return self._shapes.installed(
            {
                site: form
                for site, form in forms.items()
                if form is not None and not isinstance(form, Unsettled)
            }
        )

    def snapshot(
        self,
        epoch: int,
        seconds: float,
        counts: Mapping[GuestVirtual, SiteEpoch],
        forms: Mapping[GuestVirtual, Found],
    ) -> Snapshot:
        """One epoch as the strategy is to see it; ``forms`` stood for all of it.

        :raise TranslationError: the counters are not mapped any more.
        """
        tables = {
            site: self._session.key_targets(site)
            for site, form in forms.items()
            if isinstance(form, LearnKeys)
        }
        return Snapshot(epoch, seconds, self._shapes.counted(counts, tables), self.told(forms))

    def decide(self, snapshot: Snapshot) -> None:
        """Let the strategy decide; ``wanted`` and ``states`` follow."""
        with collector_rests():
            self._state, decision = self._strategy.decide(self._state, snapshot)
            self.wanted.update(self._shapes.made(decision))
        self.states.update(decision.states)


def _keys(sites: Mapping[GuestVirtual, Site]) -> dict[GuestVirtual, Key]:
    return {address: site.key for address, site in sites.items() if site.key is not None}
