"""Errors of requests to the daemon.

TelemetryError
+-- BadRequestError   the client's fault: it sent something that is not a request
+-- NoAnswerError     no daemon answers a request, or not in time
+-- NotServedError    an HTTP request has no answer, or not now
"""

from http import HTTPStatus

from pydantic import ValidationError

from optpolined.errors import OptpolinedError

__all__ = ("BadRequestError", "NoAnswerError", "NotServedError", "TelemetryError", "complaint")

_COMPLAINT_MAX = 160


class TelemetryError(OptpolinedError):
    """The root of this package's errors."""


class BadRequestError(TelemetryError):
    """The client sent something that is not a request; nothing was done."""


class NoAnswerError(TelemetryError):
    """No daemon answers, or not in time."""


class NotServedError(TelemetryError):
    """An HTTP request has no answer; the message is the one line of the reply.

    :param headers: Further headers of the reply.
    """

    def __init__(
        self, status: HTTPStatus, message: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


def complaint(error: ValidationError) -> str:
    """Return the first thing that is wrong with a message, in one printable line."""
    details = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in details["loc"])
    said = " ".join(f"{place} {details['msg']}".split())[:_COMPLAINT_MAX]
    return "".join(c if c.isprintable() else "?" for c in said)
