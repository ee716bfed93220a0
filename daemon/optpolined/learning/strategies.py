"""The strategies by name."""

from enum import StrEnum
from typing import Any

from optpolined.learning.continuous import Continuous
from optpolined.learning.hysteresis import Hysteresis
from optpolined.learning.periodic import Periodic
from optpolined.learning.settings import ContinuousSettings, LearningSettings, PeriodicSettings
from optpolined.learning.shape import Shaper
from optpolined.learning.strategy import Strategy

__all__ = ("StrategyName", "make_strategy")


class StrategyName(StrEnum):
    """The strategies that a configuration may name."""

    HYSTERESIS = "hysteresis"
    CONTINUOUS = "continuous"
    EPOCH = "epoch"


def make_strategy(
    name: StrategyName,
    *,
    hysteresis: LearningSettings,
    continuous: ContinuousSettings,
    epoch: PeriodicSettings,
    shaper: Shaper,
) -> Strategy[Any]:
    """Return the strategy ``name`` with its settings; only the strategy knows its states."""
    match name:
        case StrategyName.HYSTERESIS:
            return Hysteresis(hysteresis, shaper)
        case StrategyName.CONTINUOUS:
            return Continuous(continuous)
        case StrategyName.EPOCH:
            return Periodic(epoch, shaper)
