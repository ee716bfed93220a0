"""Reads from a guest's second QMP socket when it stops; has no thread, because `crash` forks."""

import json
import socket
from pathlib import Path
from typing import Any, Self

__all__ = ("Watch", "longest_after")

_PATIENCE_SECONDS = 120

Event = tuple[str, float]
"""STOP or RESUME, and the host's time in seconds since 1970."""


class Watch:
    """A QMP connection that collects the events STOP and RESUME."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_PATIENCE_SECONDS)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._events: list[Event] = []
        self._message()  # the greeting
        self.execute("qmp_capabilities")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def is_running(self) -> bool:
        """Return whether the guest runs now; collect the events up to now."""
        return bool(self.execute("query-status")["status"] == "running")

    def take_events(self) -> list[Event]:
        """Return the events since the last call, the oldest first."""
        events, self._events = self._events, []
        return events

    def execute(self, command: str) -> Any:
        """Return what QEMU answers to a command."""
        self._socket.sendall(json.dumps({"execute": command}).encode())
        while "return" not in (message := self._message()):
            if message.get("event") in ("STOP", "RESUME"):
                stamp = message["timestamp"]
                seconds = stamp["seconds"] + stamp["microseconds"] / 1e6
                self._events.append((message["event"], seconds))
        return message["return"]

    def _message(self) -> Any:
        return json.loads(self._lines.readline())


def longest_after(events: list[Event], moment: float) -> float:
    """Return the longest stop in seconds, counted from ``moment`` at the earliest."""
    longest, since = 0.0, None
    for name, seconds in events:
        if name == "STOP":
            since = seconds
        elif since is not None:
            longest = max(longest, seconds - max(since, moment))
            since = None
    return longest
