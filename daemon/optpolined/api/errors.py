"""What can be wrong with what is asked of the daemon.

TelemetryError
+-- BadRequestError   what came is no request
+-- NoAnswerError     nobody answers a request, or not in time
+-- NotServedError    what was asked for over HTTP is not there, or not now
"""

from http import HTTPStatus

from pydantic import ValidationError

from optpolined.errors import OptpolinedError

__all__ = ("BadRequestError", "NoAnswerError", "NotServedError", "TelemetryError", "complaint")

_COMPLAINT_MAX = 160


class TelemetryError(OptpolinedError):
    """Something about the daemon's socket."""


class BadRequestError(TelemetryError):
    """What came is no request; nothing was done."""


class NoAnswerError(TelemetryError):
    """Nobody answers, or not in time."""


class NotServedError(TelemetryError):
    """No answer to what was asked for over HTTP; the message is its one line.

    :param headers: What the reply has besides.
    """

    def __init__(
        self, status: HTTPStatus, message: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


def complaint(error: ValidationError) -> str:
    """The first thing that is wrong with what somebody sent, in one printable line."""
    details = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in details["loc"])
    said = " ".join(f"{place} {details['msg']}".split())[:_COMPLAINT_MAX]
    return "".join(c if c.isprintable() else "?" for c in said)
