"""What is counted for as long as the daemon runs, through all its attachments."""

from collections import Counter
from dataclasses import dataclass, field

from optpolined.api.status import EPOCH_BUCKETS_SECONDS, GRACE_BUCKETS_SECONDS
from optpolined.session.transport.stops import StopStatistics
from optpolined.telemetry.timings import Timings

__all__ = ("Tally",)


def _epochs() -> Timings:
    return Timings(EPOCH_BUCKETS_SECONDS)


def _graces() -> Timings:
    return Timings(GRACE_BUCKETS_SECONDS)


@dataclass(slots=True)
class Tally:
    """Counts and durations; `telemetry/status.py` says what each is."""

    stops: StopStatistics = field(default_factory=StopStatistics)
    epochs: Timings = field(default_factory=_epochs)
    graces: Timings = field(default_factory=_graces)
    attachments: int = 0
    pokes: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    counted_calls: int = 0
    missed_calls: int = 0
    int3_hits: int = 0
    """Of the attachments before this one."""
    recoveries: int = 0
    rescues: int = 0
    guardian_restarts: int = 0
    read_errors: int = 0
