"""The settings of the strategies.

An epoch is one snapshot of the daemon, half a second to a second.  A share is a part of the calls
of one site, 0 to 1.  A count is of calls, summed over the CPUs.
"""

from dataclasses import dataclass
from typing import ClassVar

from optpolined.learning.errors import SettingError
from optpolined.learning.ranges import check_ranges

__all__ = (
    "CONTINUOUS_RANGES",
    "EPOCH_RANGES",
    "RANGES",
    "ContinuousSettings",
    "LearningSettings",
    "PeriodicSettings",
)

RANGES: dict[str, tuple[float, float]] = {
    "promote_share": (0.5, 1.0),
    "promote_epochs": (1, 1000),
    "demote_share": (0.01, 0.99),
    "demote_epochs": (1, 1000),
    "add_share": (0.001, 0.5),
    "challenger_margin": (0.01, 0.9),
    "max_targets": (1, 16),
    "min_calls_per_second": (0.1, 1e9),
    "census_min_calls": (1, 1_000_000),
    "newest_weight": (0.01, 1.0),
    "learn_epochs": (1, 100_000),
    "audit_epochs": (1, 100_000),
    "audit_interval_epochs": (1, 100_000),
    "baseline_half_life_epochs": (1, 1_000_000),
    "reopen_epochs": (1, 100_000),
    "reopen_share": (0.001, 1.0),
    "quarantine_epochs": (1, 100_000),
    "quarantine_epochs_max": (1, 1_000_000),
    "calm_epochs": (1, 1_000_000),
}
"""The least and the most of each setting of hysteresis; where these are whole, it is too."""

CONTINUOUS_RANGES: dict[str, tuple[float, float]] = {
    "fast_targets": (1, 8),
    "candidates": (1, 64),
    "update_calls": (1, 1_000_000_000),
    "wipe_misses": (1, 1_000_000_000),
    "patch_calls": (0, 1_000_000_000),
}
"""The same for the continuous strategy."""

EPOCH_RANGES: dict[str, tuple[float, float]] = {
    "learn_epochs": (1, 100_000),
    "worker_epochs": (1, 100_000),
    "retrain_epochs": (2, 1_000_000),
    "max_targets": (1, 16),
    "min_calls": (1, 1_000_000_000),
}
"""The same for the epoch strategy."""


@dataclass(frozen=True, slots=True)
class LearningSettings:
    """Hysteresis: when a target is worth it.

    :raise SettingError: A value is out of :data:`RANGES`, or two of them contradict each other.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    promote_share: float = 0.90
    """A site is promoted when its hottest targets take at least this share of its calls."""
    promote_epochs: int = 3
    """For so many busy epochs in a row the same targets must have had that share."""
    demote_share: float = 0.30
    """More misses than this share of the calls, and the chain is wrong."""
    demote_epochs: int = 2
    """So many audited epochs in a row must say so."""
    add_share: float = 0.05
    """What a further target must take to be worth a free place in the chain.  So many more misses
    than expected are looked into."""
    challenger_margin: float = 0.10
    """By so much of the calls a challenger must beat the weakest target of a full chain."""
    max_targets: int = 4
    """How many targets a site gets at most, unless more of them are needed for promote_share and
    the cost model says that they pay."""
    min_calls_per_second: float = 20.0
    """An epoch with fewer calls of a site says nothing about it."""
    census_min_calls: int = 8
    """A cold site begins to learn when an epoch of a census has counted so many calls of it."""
    newest_weight: float = 0.5
    """What the newest epoch counts for in the moving average of the shares."""
    learn_epochs: int = 10
    """The length of a learning window; one that is about to agree gets promote_epochs more."""
    audit_epochs: int = 6
    """For so long a suspicious chain counts its hits at most."""
    audit_interval_epochs: int = 32
    """The pause after an audit of moderate misses that changed nothing; doubles each time, up to
    quarantine_epochs_max."""
    baseline_half_life_epochs: int = 128
    """The call rate of a promoted site is not measured.  Belief in the last one halves in this
    time, so that misses of a site that became quieter are looked into too."""
    reopen_epochs: int = 8
    """Every so many epochs some of the cold sites get another window, in turn."""
    reopen_share: float = 0.125
    """This share of the cold sites: all of them in reopen_epochs / reopen_share epochs."""
    quarantine_epochs: int = 16
    """A site that flapped or has too many targets is let alone for so long; doubles each time."""
    quarantine_epochs_max: int = 4096
    """The longest pause of any kind."""
    calm_epochs: int = 64
    """A doubling is taken back after a calm time of at least this, and of at least twice the time
    over which the site misbehaved."""

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        if self.demote_share + self.promote_share <= 1 + 1e-9:
            allowed = f"more than 1 - promote_share ({1 - self.promote_share:.3g})"
            raise SettingError("demote_share", self.demote_share, allowed)
        for longer, shorter in (
            ("learn_epochs", "promote_epochs"),
            ("audit_epochs", "demote_epochs"),
            ("quarantine_epochs_max", "quarantine_epochs"),
            ("quarantine_epochs_max", "audit_interval_epochs"),
        ):
            _check_at_least(self, longer, shorter)


@dataclass(frozen=True, slots=True)
class ContinuousSettings:
    """Continuous: the numbers of Cree's dynamic calls.

    :raise SettingError: A value is out of :data:`CONTINUOUS_RANGES`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    fast_targets: int = 2
    """Targets that are called directly."""
    candidates: int = 4
    """Further targets that are counted at a time; all others are misses."""
    update_calls: int = 1000
    """When the candidates have more calls than this, the best are patched in."""
    wipe_misses: int = 1000
    """When there are more misses than this first, other candidates get a chance."""
    patch_calls: int = 250
    """The best must have more calls than this, or nothing is patched."""

    def __post_init__(self) -> None:
        check_ranges(self, CONTINUOUS_RANGES)


@dataclass(frozen=True, slots=True)
class PeriodicSettings:
    """Epoch: learn, patch, and train again at intervals.

    :raise SettingError: A value is out of :data:`EPOCH_RANGES`, or two contradict each other.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    learn_epochs: int = 10
    """For so long a training lasts at most."""
    worker_epochs: int = 2
    """Every so many epochs of a training, the sites that were called are patched."""
    retrain_epochs: int = 240
    """From the start of one training to that of the next."""
    max_targets: int = 1
    """The most frequent target, or so many of them."""
    min_calls: int = 1
    """A site with fewer calls in a training is not patched."""

    def __post_init__(self) -> None:
        check_ranges(self, EPOCH_RANGES)
        _check_at_least(self, "learn_epochs", "worker_epochs")
        if self.retrain_epochs <= self.learn_epochs:
            allowed = f"more than learn_epochs ({self.learn_epochs})"
            raise SettingError("retrain_epochs", self.retrain_epochs, allowed)


def _check_at_least(settings: object, longer: str, shorter: str) -> None:
    value, least = getattr(settings, longer), getattr(settings, shorter)
    if value < least:
        raise SettingError(longer, value, f"at least {shorter} ({least})")
