"""The daemon as a process of its own, on a guest of the tests."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from guest.image.boot import Guest
from optpolined.api.errors import NoAnswerError
from optpolined.api.status import DaemonPhase, Status
from optpolined.telemetry.server import status_socket
from optpolined.telemetry.socket_client import read_status
from tests.guest.command import COMMAND
from tests.guest.harness import PATIENCE_SECONDS, wait_until, write_config

__all__ = ("AT_WORK", "LEARN_BY_STUBS", "Running", "text_was_put_back")

AT_WORK = (DaemonPhase.LEARNING, DaemonPhase.RUNNING)


LEARN_BY_STUBS = "[learning.census]\nenabled = false\n"
"""Thousands of cold sites get a learning stub in turn, so that the daemon never stops poking.  The
tests disturb it at that; test_census.py has the daemon that learns by census."""


class Running:
    """The daemon as a process, with its status, its report and its log; it learns by stubs.

    :param options: More of the command line.
    :param prefix: A command that runs the daemon, such as ``setpriv``.
    """

    def __init__(
        self,
        guest: Guest,
        directory: Path,
        config: str = "",
        *,
        options: Sequence[object] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        learning = f"[learning]\nepoch_milliseconds = 200\n{LEARN_BY_STUBS}"
        write_config(guest, directory, learning + config)
        self.report_file = directory / "report.json"
        self._status = status_socket(guest.directory / "run", "test")
        self._log = directory / "daemon.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *prefix,
                    *(str(COMMAND), "--guest", "test", "--config-dir", str(directory)),
                    *("--report", str(self.report_file)),
                    *map(str, options),
                ],
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def said(self) -> str:
        """Return what it has written to its log."""
        return self._log.read_text()

    def status(self) -> Status | None:
        """Return its status now; ``None`` where it does not answer, as before it is attached."""
        try:
            return read_status(self._status)
        except NoAnswerError:
            return None

    def wait_for(self, wanted: Callable[[Status], bool]) -> Status:
        """Wait until the daemon's status is as wanted, and return it."""

        def look() -> Status | None:
            assert self.process.poll() is None, self.said()
            return self.status()

        def holds(status: Status | None) -> bool:
            return status is not None and wanted(status)

        status = wait_until(look, "the daemon's status is as wanted", holds)
        assert status is not None
        return status

    def wait_patched(self) -> Status:
        """Wait until this attachment has a thousand blocks, of at least 32 bytes each."""
        return self.wait_for(lambda status: status.arena.used_bytes > 32_000)

    def wait_epochs(self, count: int) -> Status:
        """Let that many epochs pass, those of a pause and of a migration too."""
        first = self.wait_for(lambda _: True).epochs.count
        return self.wait_for(lambda status: status.epochs.count >= first + count)

    def wait_says(self, text: str) -> None:
        """Wait until the log has ``text``; the daemon may have ended with it."""
        wait_until(self.said, f"the daemon says {text!r}", lambda said: text in said)

    def wait_end(self) -> tuple[int, str]:
        """Wait until it ends by itself; return its exit code and what it said."""
        return self.process.wait(PATIENCE_SECONDS), self.said()

    def end(self) -> tuple[int, str]:
        """Ask it to leave; return its exit code and what it said."""
        self.process.terminate()
        return self.wait_end()

    def kill(self) -> None:
        """End it at once, where it has not ended."""
        self.process.kill()
        self.process.wait()


def text_was_put_back(running: Running) -> bool:
    """Return whether the report says that the text is what it was."""
    report = json.loads(running.report_file.read_text())
    return bool(report["text_identical_after_detach"])
