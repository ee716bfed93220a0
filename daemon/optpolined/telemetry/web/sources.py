"""Where what is served comes from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from optpolined.api.requests import Answer, Question
from optpolined.api.status import Status
from optpolined.telemetry.history import Sample

__all__ = ("Sources",)


@dataclass(frozen=True, slots=True)
class Sources:
    """All are called from the server's threads."""

    status: Callable[[], Status]
    history: Callable[[], Sequence[Sample]]
    ask: Callable[[Question], Answer | None]
    """Puts a question to the reconcile loop, and waits some seconds; ``None``: no answer came."""
    registry: CollectorRegistry
