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
    "PERIODIC_RANGES",
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
"""The least and the most of each setting of hysteresis; if both are whole, it is too."""

CONTINUOUS_RANGES: dict[str, tuple[float, float]] = {
    "fast_targets": (1, 8),
    "candidates": (1, 64),
    "update_calls": (1, 1_000_000_000),
    "wipe_misses": (1, 1_000_000_000),
    "patch_calls": (0, 1_000_000_000),
}
"""The same for the continuous strategy."""

PERIODIC_RANGES: dict[str, tuple[float, float]] = {
    "learn_epochs": (1, 100_000),
    "worker_epochs": (1, 100_000),
    "retrain_epochs": (2, 1_000_000),
    "max_targets": (1, 16),
    "min_calls": (1, 1_000_000_000),
}
"""The same for the periodic strategy."""


@dataclass(frozen=True, slots=True)
class LearningSettings:
    """Hysteresis: when a target is worth it.

    :raise SettingError: A value is out of :data:`RANGES`, or two of them contradict each other.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    promote_share: float = 0.90
    """A site is promoted when its hottest targets take at least this share of its calls."""
    promote_epochs: int = 3
    """The same targets must have that share for so many busy epochs in a row."""
    demote_share: float = 0.30
    """A chain is wrong when misses exceed this share of the calls."""
    demote_epochs: int = 2
    """A site is demoted when its chain is wrong for so many audited epochs in a row."""
    add_share: float = 0.05
    """The share of the calls that a further target must take to get a free place in the chain.  The
    site is audited when its misses exceed what was expected by this share."""
    challenger_margin: float = 0.10
    """A challenger must beat the weakest target of a full chain by this share of the calls."""
    max_targets: int = 4
    """The most targets of a site.  It gets more where promote_share needs more of them and the cost
    model says that they pay."""
    min_calls_per_second: float = 20.0
    """An epoch with fewer calls of a site than this is ignored for that site."""
    census_min_calls: int = 8
    """A cold site begins to learn when an epoch of a census has counted so many calls of it."""
    newest_weight: float = 0.5
    """The weight of the newest epoch in the moving average of the shares."""
    learn_epochs: int = 10
    """The length of a learning window.  A window that is about to agree gets promote_epochs
    more."""
    audit_epochs: int = 6
    """The longest time for which a suspicious chain counts its hits."""
    audit_interval_epochs: int = 32
    """The pause after an audit that found moderate misses and changed nothing.  It doubles each
    time, up to quarantine_epochs_max."""
    baseline_half_life_epochs: int = 128
    """The call rate of a promoted site is not measured.  The last known rate halves in this time,
    so that the misses of a site that became quieter are audited too."""
    reopen_epochs: int = 8
    """Some of the cold sites, in turn, get another window every so many epochs."""
    reopen_share: float = 0.125
    """The share of the cold sites that get one: all of them in reopen_epochs / reopen_share
    epochs."""
    quarantine_epochs: int = 16
    """How long a site is left alone that flapped or has too many targets.  It doubles each time."""
    quarantine_epochs_max: int = 4096
    """The longest pause of any kind."""
    calm_epochs: int = 64
    """One doubling is undone after a calm time of at least this, and of at least twice the time
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
    """Continuous: the thresholds of Cree's dynamic calls.

    :raise SettingError: A value is out of :data:`CONTINUOUS_RANGES`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    fast_targets: int = 2
    """The most targets that are called directly."""
    candidates: int = 4
    """How many further targets are counted at a time; calls of all others are misses."""
    update_calls: int = 1000
    """The best are patched in when the candidates have more calls than this."""
    wipe_misses: int = 1000
    """Other candidates get a chance when there are more misses than this first."""
    patch_calls: int = 250
    """Nothing is patched unless the best target has more calls than this."""

    def __post_init__(self) -> None:
        check_ranges(self, CONTINUOUS_RANGES)


@dataclass(frozen=True, slots=True)
class PeriodicSettings:
    """Periodic: learn, patch, and train again at intervals.

    :raise SettingError: A value is out of :data:`PERIODIC_RANGES`, or two contradict each other.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    learn_epochs: int = 10
    """The longest training."""
    worker_epochs: int = 2
    """The sites that were called are patched every so many epochs of a training."""
    retrain_epochs: int = 240
    """The time from the start of one training to the start of the next."""
    max_targets: int = 1
    """How many of the most frequent targets a site gets."""
    min_calls: int = 1
    """A site with fewer calls than this in a training is not patched."""

    def __post_init__(self) -> None:
        check_ranges(self, PERIODIC_RANGES)
        _check_at_least(self, "learn_epochs", "worker_epochs")
        if self.retrain_epochs <= self.learn_epochs:
            allowed = f"more than learn_epochs ({self.learn_epochs})"
            raise SettingError("retrain_epochs", self.retrain_epochs, allowed)


def _check_at_least(settings: object, longer: str, shorter: str) -> None:
    value, least = getattr(settings, longer), getattr(settings, shorter)
    if value < least:
        raise SettingError(longer, value, f"at least {shorter} ({least})")
