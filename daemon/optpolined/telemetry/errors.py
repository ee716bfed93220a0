"""What can be wrong with what is asked of the daemon.

TelemetryError
+-- BadRequestError   what came is no request
+-- NoAnswerError     nobody answers a request, or not in time
"""

from optpolined.errors import OptpolinedError

__all__ = ("BadRequestError", "NoAnswerError", "TelemetryError")


class TelemetryError(OptpolinedError):
    """Something about the daemon's socket."""


class BadRequestError(TelemetryError):
    """What came is no request; nothing was done."""


class NoAnswerError(TelemetryError):
    """Nobody answers, or not in time."""
