"""What a service manager receives from the daemon; tests/systemd has a real manager."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from guest.image.boot import Guest
from tests.guest.command import COMMAND
from tests.guest.harness import PATIENCE_SECONDS, wait_until, write_config


class Manager:
    """Listens where NOTIFY_SOCKET points to."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._place = 0
        self.heard: list[str] = []

    def until(self, holds: Callable[[str], bool]) -> None:
        """Listen until a line holds; look only at lines after the one that the last call found."""

        def look() -> list[str]:
            if not any(map(holds, self.heard[self._place :])):
                self.heard += self._listener.recv(4096).decode().split("\n")
            return self.heard[self._place :]

        lines = wait_until(look, "a line holds", lambda lines: any(map(holds, lines)))
        self._place += next(at for at, line in enumerate(lines) if holds(line)) + 1


def test_the_manager_is_told_from_the_way_in_to_the_way_out(guest: Guest, tmp_path: Path) -> None:
    write_config(guest, tmp_path)
    address = guest.directory / "notify"
    environment = os.environ | {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "2000000"}
    command: list[str | Path] = [COMMAND, "--guest", "test", "--config-dir", tmp_path]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(PATIENCE_SECONDS)
        listener.bind(str(address))
        manager = Manager(listener)
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as daemon:
            try:
                manager.until(lambda line: line == "STATUS=attaching")
                manager.until(lambda line: line.startswith("STATUS=learning: 7,"))
                manager.until(lambda line: line == "READY=1")
                guardian = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text()
                told = Path(f"/proc/{guardian.strip()}/environ").read_bytes()
                assert b"NOTIFY_SOCKET" not in told
                for _ in range(3):
                    manager.until(lambda line: line == "WATCHDOG=1")
                daemon.send_signal(signal.SIGHUP)
                manager.until(lambda line: line == "RELOADING=1")
                manager.until(lambda line: line == "READY=1")
                daemon.terminate()
                manager.until(lambda line: line == "STOPPING=1")
                manager.until(lambda line: line.startswith("EXTEND_TIMEOUT_USEC="))
                manager.until(lambda line: line.startswith("STATUS=detached: "))
                assert daemon.wait(PATIENCE_SECONDS) == 0
            finally:
                daemon.kill()
                address.unlink()
