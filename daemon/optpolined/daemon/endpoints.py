"""What outlives an attachment: the status, the last hour, and the way in for requests."""

import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry

from optpolined.api.request_queue import RequestQueue
from optpolined.api.requests import Answer, Question
from optpolined.api.status import Status
from optpolined.config import GuestConfig
from optpolined.session.errors import AttachRefusedError
from optpolined.telemetry.history import History
from optpolined.telemetry.metrics import StatusCollector
from optpolined.telemetry.server import serve_status, status_socket
from optpolined.telemetry.web.server import serve_web
from optpolined.telemetry.web.sources import Sources

__all__ = ("Endpoints",)

_ANSWER_SECONDS = 10.0


class Endpoints:
    """Serves the status of one guest, for as long as the ``with`` block runs.

    Nothing is served before :meth:`open`, which needs the lock of an attachment: another daemon may
    serve the guest.  ``status`` may be read from any thread.
    """

    def __init__(self, guest: str, config: GuestConfig) -> None:
        self._config = config
        self._stack = ExitStack()
        self._is_open = False
        self.requests = RequestQueue()
        self.history = History()
        self.status = Status(guest)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def publish(self, status: Status) -> None:
        """Answer with ``status`` from now on."""
        self.status = status
        self.history.add(status, time.time())

    def open(self) -> None:
        """Serve status and requests on the socket and, where configured, the rest over HTTP.

        :raise AttachRefusedError: one of the two cannot be served.
        """
        if self._is_open:
            return
        path = status_socket(self._config.runtime_directory, self.status.guest)
        address, port = self._config.metrics.listen_address, self._config.metrics.port
        try:
            self._stack.enter_context(serve_status(path, lambda: self.status, self.requests))
            if port:
                self._stack.enter_context(serve_web(address, port, self._sources()))
        except OSError as error:
            raise AttachRefusedError(
                f"the status cannot be served at {path}, or metrics at {address}:{port}: "
                f"{error.strerror or error}"
            ) from error
        self._is_open = True

    def _sources(self) -> Sources:
        registry = CollectorRegistry()
        registry.register(StatusCollector(lambda: self.status))
        return Sources(
            status=lambda: self.status,
            history=self.history.samples,
            ask=self._ask,
            registry=registry,
        )

    def _ask(self, question: Question) -> Answer | None:
        """Return the reconcile loop's answer; ``None`` where it does not come in time."""
        pending = self.requests.put(question)
        answer = pending.wait(_ANSWER_SECONDS)
        if answer is None:
            self.requests.withdraw(pending)
        return answer
