"""What one run of the daemon is to do."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from optpolined.api.status import Status
from optpolined.config import GuestConfig, Settings
from optpolined.control.override_file import OverrideFile
from optpolined.control.overrides import Overrides
from optpolined.control.recorder import Recording
from optpolined.daemon.endpoints import Endpoints
from optpolined.session.tally import Tally
from optpolined.telemetry.notify import Notifier

__all__ = ("Job",)

_TICK_SECONDS = 0.1
"""Seconds between two looks for requests, and two signs of life."""


@dataclass(slots=True)
class Job:
    """What one run is to do, for how long from the first attach on, and where its status goes."""

    guest: str
    settings: Settings
    audit: bool
    force: bool
    duration_seconds: float | None
    stop: threading.Event
    show: Callable[[Status], None]
    overrides: Overrides
    """What the operator has decided about sites; outlives an attachment."""
    override_file: OverrideFile
    """Where the overrides are kept for a daemon that follows a crash."""
    endpoints: Endpoints
    """Where the status is served and requests come from; outlives an attachment too."""
    reread: Callable[[], GuestConfig | None]
    """Return another configuration, if a reload was asked for since the last call."""
    tally: Tally = field(default_factory=Tally)
    notifier: Notifier = field(default_factory=Notifier)
    """The service manager, if there is one."""
    recording: Recording | None = None
    """Where what learning sees is written."""
    attached_at: float | None = None
    """As time.monotonic() gives it."""

    @property
    def is_over(self) -> bool:
        """Whether the time is over, or the daemon was asked to leave."""
        return self.stop.is_set() or (
            self.duration_seconds is not None
            and self.attached_at is not None
            and time.monotonic() - self.attached_at >= self.duration_seconds
        )

    def attached(self) -> None:
        """Note that the guest is attached to; the time counts from the first."""
        self.tally.attachments += 1
        if self.attached_at is None:
            self.attached_at = time.monotonic()

    def rest(self, seconds: float) -> None:
        """Wait for a moment of at most ``seconds``; a request to leave ends it."""
        self.notifier.alive()
        self.stop.wait(min(seconds, _TICK_SECONDS))
