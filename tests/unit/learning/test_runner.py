"""A runner whose settings change while it learns."""

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.config import LearningConfig
from optpolined.learning.overridden import Override
from optpolined.learning.runner import StrategyRunner
from optpolined.learning.settings import LearningSettings
from optpolined.learning.strategies import StrategyName
from optpolined.learning.strategy import SiteEpoch

from .synthetic import SECONDS, A, B, C, site

PATIENT = LearningConfig(hysteresis=LearningSettings(promote_epochs=8))
HASTY = LearningConfig(hysteresis=LearningSettings(promote_epochs=3))


class Taught:
    """Two sites that call A and B all the time, and a runner whose wanted forms are all made."""

    def __init__(self, config: LearningConfig) -> None:
        self.runner = StrategyRunner(config)
        self.runner.update_sites({site(0): None, site(1): None}, ())
        self.epoch = 0

    def epochs(self, number: int) -> dict[GuestVirtual, Form]:
        """The last decision of so many epochs."""
        made: dict[GuestVirtual, Form] = {}
        for _ in range(number):
            self.epoch += 1
            forms = dict(self.runner.wanted)
            counts = {
                address: SiteEpoch({A: 900} if address == site(0) else {B: 900})
                for address, form in forms.items()
                if form == LEARNING
            }
            made = self.runner.decide(self.runner.snapshot(self.epoch, SECONDS, counts, {}, forms))
        return made


def test_other_settings_go_on_from_what_was_learned() -> None:
    taught = Taught(PATIENT)
    taught.epochs(5)  # four of them were counted
    taught.runner.use_settings(HASTY)
    assert taught.runner.wanted == {site(0): LEARNING, site(1): LEARNING}
    assert taught.epochs(1) == {site(0): Chain((A,)), site(1): Chain((B,))}


def test_promoted_sites_stay_when_the_settings_change() -> None:
    taught = Taught(HASTY)
    taught.epochs(5)
    standing = dict(taught.runner.wanted)
    taught.runner.use_settings(PATIENT)
    assert taught.epochs(1) == {}
    assert taught.runner.wanted == standing == {site(0): Chain((A,)), site(1): Chain((B,))}


def test_another_strategy_begins_anew_and_obeys_the_same_rulings() -> None:
    taught = Taught(HASTY)
    taught.runner.set_overrides({site(1): Override(C, "pinned")})
    taught.epochs(5)
    taught.runner.use_settings(HASTY.model_copy(update={"strategy": StrategyName.CONTINUOUS}))
    # Nothing of what stands is wanted by a strategy that has not looked yet.
    assert taught.runner.wanted == {site(0): ORIGINAL, site(1): ORIGINAL}
    taught.epochs(1)
    assert taught.runner.wanted == {site(0): LEARNING, site(1): Chain((C,))}
    assert taught.epochs(3) == {}
    assert taught.runner.wanted[site(0)] == Chain((A,), counts_hits=True)
