"""The strategies by name."""

from enum import StrEnum
from typing import Any

from optpolined.learning.continuous import Continuous
from optpolined.learning.hysteresis import Hysteresis
from optpolined.learning.periodic import Periodic
from optpolined.learning.settings import ContinuousSettings, LearningSettings, PeriodicSettings
from optpolined.learning.shape import Shaper
from optpolined.learning.strategy import Strategy

__all__ = ("PERIODIC_BEFORE", "StrategyName", "make_strategy")


PERIODIC_BEFORE = "epoch"
"""The name of ``periodic``, and of its section, in older traces and guests' files."""


class StrategyName(StrEnum):
    """The strategies that a configuration may name."""

    HYSTERESIS = "hysteresis"
    CONTINUOUS = "continuous"
    PERIODIC = "periodic"

    @classmethod
    def _missing_(cls, value: object) -> "StrategyName | None":
        return cls.PERIODIC if value == PERIODIC_BEFORE else None


def make_strategy(
    name: StrategyName,
    *,
    hysteresis: LearningSettings,
    continuous: ContinuousSettings,
    periodic: PeriodicSettings,
    shaper: Shaper,
) -> Strategy[Any]:
    """Return the strategy ``name`` with its settings; only the strategy knows its states."""
    match name:
        case StrategyName.HYSTERESIS:
            return Hysteresis(hysteresis, shaper)
        case StrategyName.CONTINUOUS:
            return Continuous(continuous)
        case StrategyName.PERIODIC:
            return Periodic(periodic, shaper)
