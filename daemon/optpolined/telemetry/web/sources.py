"""Where the data of the web server comes from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from optpolined.api.requests import Answer, Question
from optpolined.api.status import Status
from optpolined.telemetry.history import Sample

__all__ = ("Sources",)


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources; the server's threads call them."""

    status: Callable[[], Status]
    history: Callable[[], Sequence[Sample]]
    ask: Callable[[Question], Answer | None]
    """Asks the reconcile loop, and waits some seconds; ``None`` where no answer comes."""
    registry: CollectorRegistry
