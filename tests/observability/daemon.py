"""The daemon as a process, with its metrics on a port, and the way to ask it for things."""

import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from guest.image.boot import Guest
from optpolined.api.errors import NoAnswerError
from optpolined.api.requests import Answer, ListSites, Request
from optpolined.api.sites import SiteRow
from optpolined.api.status import DaemonPhase, Status
from optpolined.telemetry.server import status_socket
from optpolined.telemetry.socket_client import ask, read_status
from tests.guest.command import COMMAND
from tests.guest.harness import PATIENCE_SECONDS, wait_until, write_config
from tests.observability.prometheus import free_port

__all__ = ("GUEST", "Daemon")

GUEST = "test"


class Daemon:
    """Can be started, killed and started again, and ends with the ``with`` block.

    What it has changed is put back then.
    """

    def __init__(self, guest: Guest, directory: Path) -> None:
        self.port = free_port()
        self._guest = guest
        self._directory = directory
        self._socket = status_socket(guest.directory / "run", GUEST)
        self._errors = directory / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.end()
        else:
            self.kill()

    def start(self, config: str = "") -> None:
        """Start it with more settings; it is at work when this returns."""
        settings = f"{config}\n[metrics]\nport = {self.port}\n"
        write_config(self._guest, self._directory, settings)
        with self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [COMMAND, "--guest", GUEST, "--config-dir", self._directory],
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        self.wait(lambda status: status.phase is not DaemonPhase.ATTACHING)

    def end(self) -> None:
        """Ask it to put everything back and leave; nothing where it was killed, or has left."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            assert process.wait(PATIENCE_SECONDS) == 0, self.said()

    def kill(self) -> None:
        """End it at once; its guardian lets the guest run.  Again does nothing."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def kill_in_a_stop(self, is_paused: Callable[[], bool]) -> None:
        """Kill it while the guest stands stopped by it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        assert self._process is not None
        while True:
            self._process.send_signal(signal.SIGSTOP)
            time.sleep(0.01)
            if is_paused():
                break
            self._process.send_signal(signal.SIGCONT)
            assert time.monotonic() < deadline, "no stop was met"
            time.sleep(0.03)
        self.kill()

    def said(self) -> str:
        """What it has written to its log."""
        return self._errors.read_text("utf-8", "replace")

    def status(self) -> Status:
        """Its status now."""
        return read_status(self._socket)

    def wait(self, wanted: Callable[[Status], bool]) -> Status:
        """Wait until the status is as wanted."""

        def look() -> Status | None:
            assert self._process is not None
            assert self._process.poll() is None, self.said()
            with suppress(NoAnswerError):  # not attached yet
                return self.status()
            return None

        status = wait_until(
            look,
            "the status is as wanted",
            lambda status: status is not None and wanted(status),
        )
        assert status is not None
        return status

    def ask(self, request: Request) -> Answer:
        """Have something done."""
        answer = ask(self._socket, request)
        assert answer.outcome == "done", answer.says
        return answer

    def sites(self, pattern: str = "*", *states: str) -> tuple[SiteRow, ...]:
        """The sites of the functions that match, the most called first."""
        wanted = ListSites(pattern=pattern, states=states, order="calls")
        return self.ask(wanted).sites

    def page(self) -> str:
        """The metrics, as Prometheus reads them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            body: bytes = answer.read()
        return body.decode()
