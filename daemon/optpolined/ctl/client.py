"""The daemon of one guest, at the other end of its socket."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pwd import getpwuid

from optpolined.api.errors import NoAnswerError
from optpolined.api.requests import Answer, Request
from optpolined.api.status import Status
from optpolined.config import GuestConfig
from optpolined.telemetry.server import status_socket
from optpolined.telemetry.socket_client import ask, read_status

__all__ = ("DaemonClient",)

_PATIENCE_SECONDS = 60.0


class DaemonClient:
    """The daemon of ``guest``; where it does not answer, the error says what to do."""

    def __init__(self, guest: str, config: GuestConfig) -> None:
        self.guest = guest
        self._path = status_socket(config.runtime_directory, guest)

    def ask(self, request: Request, *, timeout_seconds: float = _PATIENCE_SECONDS) -> Answer:
        """Send a request, and return its answer.

        :raise NoAnswerError: no daemon runs, or you may not open its socket, or it does not answer.
        """
        with self._saying_what_to_do():
            return ask(self._path, request, timeout_seconds=timeout_seconds)

    def status(self) -> Status:
        """Return its status.

        :raise NoAnswerError: as :meth:`ask`.
        """
        with self._saying_what_to_do():
            return read_status(self._path)

    @contextmanager
    def _saying_what_to_do(self) -> Iterator[None]:
        try:
            yield
        except NoAnswerError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and not isinstance(cause, TimeoutError):
                raise self._no_answer(cause) from error
            raise

    def _no_answer(self, error: OSError) -> NoAnswerError:
        match error:
            case FileNotFoundError() | ConnectionRefusedError():
                what = f"no daemon answers; start it with `optpolined --guest {self.guest}`"
            case PermissionError():
                owner = _owner(self._path)
                what = (
                    f"{_name(os.geteuid())} may not open it; "
                    f"run this as {owner}: `sudo -u {owner} optpolinectl ...`"
                )
            case _:
                what = f"{error.strerror or error}; is `optpolined --guest {self.guest}` running?"
        return NoAnswerError(f"{self._path}: {what}")


def _owner(path: Path) -> str:
    """Return the owner of ``path``, or of its first parent that we can see."""
    for place in (path, *path.parents):
        try:
            return _name(place.stat().st_uid)
        except OSError:
            continue
    return "root"


def _name(user: int) -> str:
    try:
        return getpwuid(user).pw_name
    except KeyError:
        return f"#{user}"
