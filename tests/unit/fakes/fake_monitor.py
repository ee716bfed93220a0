"""A QMP server that knows a handful of commands, and a guest that runs or stands still."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.unit.fakes.faults import NO_FAULTS, Faults, Outlet
from tests.unit.fakes.server import FakeServer

__all__ = ("GREETING", "FakeMonitor")

GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "fake"},
        "capabilities": ["oob"],
    }
}


class FakeMonitor(FakeServer):
    """The server.

    :param greeting: What it says first; None: nothing, as QEMU to a second client.
    :param hmp: Answers of the human monitor, by line.
    :param silent: Commands that are never answered.
    """

    def __init__(
        self,
        path: Path,
        *,
        faults: Faults = NO_FAULTS,
        greeting: bytes | None = json.dumps(GREETING).encode() + b"\r\n",
        hmp: Mapping[str, str] | None = None,
        silent: tuple[str, ...] = (),
        status: str = "running",
    ) -> None:
        super().__init__(path, faults)
        self.status = status
        self.chardevs: list[dict[str, object]] = []
        self.commands: list[str] = []
        self.lines: list[str] = []
        self.replies: dict[str, bytes] = {}
        """Bytes to send instead of the answer to a command."""
        self.on_hmp: Callable[[str], str] = (hmp or {}).__getitem__
        self._greeting = greeting
        self._silent = silent
        self._received = ""

    def emit(self, name: str, data: Mapping[str, object] | None = None) -> None:
        """Send an event."""
        self.say(_event(name, data))

    def opened(self, outlet: Outlet) -> None:
        """Greet."""
        self._received = ""
        if self._greeting is not None:
            outlet.send(self._greeting)

    def received(self, data: bytes, outlet: Outlet) -> None:
        """Answer each whole request; they come without line ends, as QEMU takes them too."""
        self._received = (self._received + data.decode()).lstrip()
        while self._received:
            try:
                request, end = json.JSONDecoder().raw_decode(self._received)
            except json.JSONDecodeError:
                return
            self._received = self._received[end:].lstrip()
            command = request["execute"]
            self.commands.append(command)
            if command in self._silent:
                continue
            if command in self.replies:
                outlet.send(self.replies[command])
                continue
            answer = self._answer(command, request.get("arguments", {}), outlet)
            if "id" in request:
                answer["id"] = request["id"]
            outlet.send(json.dumps(answer).encode() + b"\r\n")

    def _answer(
        self, command: str, arguments: Mapping[str, str], outlet: Outlet
    ) -> dict[str, object]:
        if command in ("stop", "cont"):
            self.status = {"stop": "paused", "cont": "running"}[command]
            outlet.send(_event({"stop": "STOP", "cont": "RESUME"}[command]))
            return {"return": {}}
        if command == "human-monitor-command":
            self.lines.append(arguments["command-line"])
            return {"return": self.on_hmp(arguments["command-line"])}
        answers: dict[str, object] = {
            "qmp_capabilities": {},
            "query-status": {"status": self.status, "running": self.status == "running"},
            "query-chardev": self.chardevs,
        }
        if command in answers:
            return {"return": answers[command]}
        text = f"The command {command} has not been found"
        return {"error": {"class": "CommandNotFound", "desc": text}}


def _event(name: str, data: Mapping[str, object] | None = None) -> bytes:
    stamp = {"seconds": 1_700_000_000, "microseconds": 250_000}
    event: dict[str, object] = {"event": name, "timestamp": stamp}
    if data is not None:
        event["data"] = data
    return json.dumps(event).encode() + b"\r\n"
