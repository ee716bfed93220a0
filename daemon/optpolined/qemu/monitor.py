"""QMP, QEMU's control socket, as plain calls that return within a time.

The library ``qemu.qmp`` speaks QMP, in an event loop in a thread of its own.  Nothing outside this
file sees asyncio.
"""

import asyncio
import logging
import socket
import struct
import threading
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from qemu.qmp import ConnectError, ExecuteError, Message, QMPClient, QMPError
from qemu.qmp.error import ProtocolError

from optpolined.qemu.errors import (
    MonitorAbsentError,
    MonitorBusyError,
    MonitorClosedError,
    MonitorCommandError,
    MonitorPermissionError,
    MonitorProtocolError,
    MonitorTimeoutError,
    one_line,
)
from optpolined.qemu.sockets import connect_unix, explain

__all__ = ("Event", "Monitor")

_T = TypeVar("_T")

_MAX_MESSAGE_BYTES = 8 << 20
_MAX_EVENTS = 1024
_MAX_EVENT_BYTES = 16 << 10
_MAX_NAME = 64
_CLOSE_SECONDS = 1.0

_LIBRARY_FAULTS = (
    QMPError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
    AssertionError,
)
"""What qemu.qmp raises from its reader when the peer sends what it does not expect."""


@dataclass(frozen=True, slots=True)
class Event:
    """A QMP event: its name, its data and the host's time in seconds since 1970.

    ``data`` is empty where the event is larger than 16 KiB, which no event of QEMU's is.
    """

    name: str
    data: Mapping[str, object]
    seconds: float


class Monitor:
    """A QMP connection.  Calls may come from any thread, one at a time."""

    def __init__(self, connection: socket.socket, path: Path, timeout_seconds: float) -> None:
        """Take over ``connection``; :meth:`connect` is what callers want."""
        # It warns of what we raise as errors.
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
        self._socket = connection
        self._path = path
        self._timeout_seconds = timeout_seconds
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)
        self._client = QMPClient("optpolined", _MAX_MESSAGE_BYTES)
        # The client's own listener would keep every event for ever, so this filter takes them all.
        self._client.events.event_filter = self._note
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, _context: None)
        self._thread = threading.Thread(target=self._run, name="qmp", daemon=True)
        self._thread.start()
        self._closed = False

    @classmethod
    def connect(cls, path: Path, *, timeout_seconds: float = 5) -> Self:
        """Connect to the QMP socket at ``path``.

        :param timeout_seconds: How long this, and later each command, may take.
        :raise MonitorAbsentError: no such socket, or nothing listens on it.
        :raise MonitorPermissionError: it may not be opened.
        :raise MonitorBusyError: another client holds it.
        :raise MonitorProtocolError: what answers is not QMP.
        """
        try:
            connection = connect_unix(path, timeout_seconds=timeout_seconds)
        except BlockingIOError as error:
            raise MonitorBusyError(_busy(path)) from error
        except PermissionError as error:
            raise MonitorPermissionError(explain(path, error)) from error
        except OSError as error:
            raise MonitorAbsentError(explain(path, error)) from error
        monitor = cls(connection, path, timeout_seconds)
        try:
            monitor._negotiate()
        except BaseException:
            monitor.close()
            raise
        return monitor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The socket's path, as it was given."""
        return self._path

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Execute a QMP command.

        :return: Its return value, as JSON has it.
        :raise MonitorCommandError: QEMU refused it.
        :raise MonitorTimeoutError: QEMU did not answer in time; whether it did it is not known.
        :raise MonitorClosedError: QEMU hung up.
        :raise MonitorProtocolError: the answer is not QMP.
        """
        if self._closed:
            raise MonitorClosedError(f"{self._path}: the QMP connection was closed")
        try:
            return self._wait(self._client.execute(command, arguments))
        except TimeoutError as error:
            raise MonitorTimeoutError(
                f"{self._path}: QEMU did not answer {command} in {self._timeout_seconds:g} s"
            ) from error
        except ExecuteError as error:
            error_class, description = one_line(error.error_class), one_line(str(error))
            raise MonitorCommandError(command, error_class, description) from error
        except ProtocolError as error:
            raise MonitorProtocolError(
                f"{self._path}: {command} was not answered by the rules of QMP"
            ) from error
        except _LIBRARY_FAULTS as error:
            raise MonitorClosedError(
                f"{self._path}: the QMP connection has ended: QEMU quit, or sent what is not QMP"
            ) from error

    def hmp(self, line: str) -> str:
        """Execute a line of QEMU's human monitor, and return what it prints.

        :raise MonitorError: as :meth:`execute`.
        """
        said = self.execute("human-monitor-command", {"command-line": line})
        if not isinstance(said, str):
            raise MonitorProtocolError(f"{self._path}: HMP {line!r} did not answer with text")
        return said

    def status(self) -> str:
        """Return QMP's RunState: ``running``, ``paused``, ``shutdown``, ``internal-error``, ...

        :raise MonitorError: as :meth:`execute`.
        """
        answer = self.execute("query-status")
        status = answer.get("status") if isinstance(answer, dict) else None
        if not isinstance(status, str):
            raise MonitorProtocolError(f"{self._path}: query-status did not answer with a status")
        return status

    def drain_events(self) -> list[Event]:
        """Take the events since the last call, the oldest first; at most 1024 are kept."""
        events = []
        while self._events:
            events.append(self._events.popleft())
        return events

    def peer_pid(self) -> int:
        """Return the process that opened the listening socket: QEMU, or libvirt for it.

        0 where we cannot see that process, as from another PID namespace.

        :raise MonitorClosedError: the connection was closed here.
        """
        if self._closed:
            raise MonitorClosedError(f"{self._path}: the QMP connection was closed")
        size = struct.calcsize("3i")
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid, _, _ = struct.unpack("3i", credentials)
        return int(pid)

    def close(self) -> None:
        """Hang up and end the thread; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop)
        self._thread.join()
        self._socket.close()

    def _negotiate(self) -> None:
        # The client closes the socket that it is given; peer_pid() needs one that stays.
        try:
            self._wait(self._client.connect(self._socket.dup()))
        except TimeoutError as error:
            if self._client.greeting is None:
                raise MonitorBusyError(_busy(self._path)) from error
            raise MonitorTimeoutError(f"{self._path}: QEMU does not answer") from error
        except ConnectError as error:
            if isinstance(error.exc, OSError | EOFError):
                raise MonitorProtocolError(
                    f"{self._path}: the peer hung up at once; is it QEMU's QMP socket?"
                ) from error
            raise MonitorProtocolError(
                f"{self._path}: the peer does not speak QMP; start QEMU with -qmp unix:..."
            ) from error
        except _LIBRARY_FAULTS as error:
            raise MonitorProtocolError(
                f"{self._path}: what answers broke the rules of QMP at once"
            ) from error

    def _wait(self, call: Coroutine[Any, Any, _T]) -> _T:
        bounded = asyncio.wait_for(call, self._timeout_seconds)
        return asyncio.run_coroutine_threadsafe(bounded, self._loop).result(
            # The loop keeps the time; this bound is for a loop that hangs.
            self._timeout_seconds + _CLOSE_SECONDS
        )

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _hang_up(self) -> None:
        try:
            await asyncio.wait_for(self._client.disconnect(), _CLOSE_SECONDS)
        except (TimeoutError, *_LIBRARY_FAULTS):
            self._socket.shutdown(socket.SHUT_RDWR)
        finally:
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            self._loop.stop()

    def _note(self, message: Message) -> bool:
        name, data, stamp = message.get("event"), message.get("data"), message.get("timestamp")
        if not isinstance(data, dict) or len(bytes(message)) > _MAX_EVENT_BYTES:
            data = {}
        self._events.append(Event(f"{name!s:.{_MAX_NAME}}", data, _seconds(stamp)))
        return False


def _seconds(stamp: object) -> float:
    """Return the time of an event, 0 where QEMU gave no time."""
    whole, micros = (
        (stamp.get("seconds"), stamp.get("microseconds")) if isinstance(stamp, dict) else (0, 0)
    )
    if not isinstance(whole, int) or not isinstance(micros, int):
        return 0.0
    # QEMU says -1 where the host's clock fails it, and never more digits than these.
    return whole + micros / 1e6 if 0 <= whole < 1 << 40 and 0 <= micros < 1_000_000 else 0.0


def _busy(path: Path) -> str:
    return (
        f"{path}: another client holds this socket, or it is not QMP; disconnect that client, or "
        "start QEMU with a second one (-qmp unix:...)"
    )
