"""The client's end of the daemon's unix socket; server.py says what goes over it."""

import socket
import time
from pathlib import Path

from pydantic import ValidationError

from optpolined.api.errors import NoAnswerError
from optpolined.api.requests import Answer, Request
from optpolined.api.status import STATUS, Status

__all__ = ("ask", "read_status")

_STATUS_MAX = 16 << 20
_ANSWER_MAX = 16 << 20
_STATUS_SECONDS = 5.0


def read_status(path: Path) -> Status:
    """Return the status that the daemon at ``path`` sends.

    :raise NoAnswerError: nothing listens at ``path``, or you may not open it, or the reply is not
        the status of a daemon of this version.
    """
    data = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_STATUS_SECONDS)
            client.connect(str(path))
            client.shutdown(socket.SHUT_WR)
            while len(data) <= _STATUS_MAX and (piece := client.recv(1 << 16)):
                data += piece
        return STATUS.validate_json(data)
    except OSError as error:
        raise _no_answer(path, error) from error
    except ValidationError as error:
        raise _not_ours(path) from error


def ask(path: Path, request: Request, *, timeout_seconds: float = 60) -> Answer:
    """Send a request to the daemon at ``path``, and wait for its answer.

    The daemon takes requests between two epochs.  It drops a request whose client has hung up.

    :raise NoAnswerError: nothing listens at ``path``, or you may not open it, or no answer comes in
        time, or the reply is not an answer of this version.
    """
    data = bytearray()
    deadline = time.monotonic() + timeout_seconds
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(timeout_seconds)
            client.connect(str(path))
            client.sendall(request.model_dump_json().encode() + b"\n")
            while b"\n" not in data and len(data) < _ANSWER_MAX:
                client.settimeout(max(0.001, deadline - time.monotonic()))
                piece = client.recv(1 << 12)
                if not piece:
                    break
                data += piece
    except TimeoutError as error:
        raise NoAnswerError(
            f"{path}: no answer in {timeout_seconds:g} s: the daemon is busy, or hangs; "
            "`optpolinectl status` shows which"
        ) from error
    except OSError as error:
        raise _no_answer(path, error) from error
    try:
        return Answer.model_validate_json(data.partition(b"\n")[0])
    except ValidationError as error:
        raise _not_ours(path) from error


def _no_answer(path: Path, error: OSError) -> NoAnswerError:
    says = f"{path}: {error.strerror or error}"
    if isinstance(error, PermissionError):
        return NoAnswerError(f"{says}: run this as root, or as the daemon's user")
    return NoAnswerError(f"{says}; is optpolined running for this guest?")


def _not_ours(path: Path) -> NoAnswerError:
    return NoAnswerError(
        f"{path}: the reply is not one of optpolined of this version; restart the daemon, or use "
        "the optpolinectl that was installed with it"
    )
