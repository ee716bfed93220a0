r"""The host's end of the command channel: a unix socket that is the guest's second serial port.

    host:  b"7 60 <base64 of the command>\n"     number, seconds that it may take
    guest: b"ready\n"                             once after each boot
           b"7 0 5\n" b"hello"                   number, exit code, size of the output, output

The host listens and QEMU connects, so that no early output of the guest is lost.
``guest/image/agent`` is the other end.
"""

import base64
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from guest.image.errors import GuestTimeoutError, QemuEndedError

__all__ = ("Channel",)

_T = TypeVar("_T")

_LOOK_SECONDS = 0.2
_KILLED_SECONDS = 5
# The guest's terminal drops what exceeds its buffer of 4096 bytes; base64 adds a third.
_COMMAND_SIZE_MAX = 2000


class Channel:
    """:param look: called again and again while we wait; raises if no answer can come."""

    def __init__(self, path: Path, look: Callable[[], None]) -> None:
        self._look = look
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._connection: socket.socket | None = None
        self._received = bytearray()
        self._number = 0

    def close(self) -> None:
        self._listener.close()
        if self._connection is not None:
            self._connection.close()

    def wait_ready(self, timeout_seconds: float) -> None:
        """Wait for the guest's greeting.

        :raise GuestTimeoutError: it did not come.
        :raise QemuEndedError: QEMU is gone.
        """
        deadline = time.monotonic() + timeout_seconds
        while self._line(deadline) != b"ready":
            pass

    def run(self, command: str, timeout_seconds: float) -> tuple[int, bytes]:
        """Run ``command`` by the guest's shell; return its exit code and what it printed.

        The guest kills a command that takes longer than ``timeout_seconds``.

        :raise GuestTimeoutError: it took longer, or the guest does not answer.
        :raise QemuEndedError: QEMU is gone.
        :raise ValueError: the command is longer than 2000 bytes.
        """
        encoded = command.encode()
        if len(encoded) > _COMMAND_SIZE_MAX:
            raise ValueError(f"a command of {len(encoded)} bytes, at most {_COMMAND_SIZE_MAX}")
        started = time.monotonic()
        self._number += 1
        number = str(self._number).encode()
        seconds = str(max(1, round(timeout_seconds))).encode()
        line = b" ".join((number, seconds, base64.b64encode(encoded))) + b"\n"
        try:
            self._peer(started + timeout_seconds).sendall(line)
        except BrokenPipeError:
            self._raise_ended()
        # A guest that is slow to kill its command must still be in step for the next one.
        deadline = started + timeout_seconds + _KILLED_SECONDS
        while True:
            words = self._line(deadline).split()
            if len(words) == 3 and words[0] == number:
                break
        output = self._exactly(int(words[2]), deadline)
        if time.monotonic() - started > timeout_seconds:
            raise GuestTimeoutError(f"{command!r} took longer than {timeout_seconds} s: {output!r}")
        return int(words[1]), output

    def _line(self, deadline: float) -> bytes:
        while (end := self._received.find(b"\n")) < 0:
            self._receive(deadline)
        return self._exactly(end + 1, deadline)[:-1]

    def _exactly(self, size: int, deadline: float) -> bytes:
        while len(self._received) < size:
            self._receive(deadline)
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _receive(self, deadline: float) -> None:
        peer = self._peer(deadline)
        try:
            data = self._patiently(lambda: peer.recv(1 << 16), deadline)
        except ConnectionResetError:
            data = b""
        if not data:
            self._raise_ended()
        self._received += data

    def _raise_ended(self) -> NoReturn:
        # QEMU is ending: wait for it, so that the error can say why.
        time.sleep(_LOOK_SECONDS)
        self._look()
        raise QemuEndedError("QEMU closed the command channel")

    def _peer(self, deadline: float) -> socket.socket:
        if self._connection is None:
            self._listener.settimeout(_LOOK_SECONDS)
            self._connection, _ = self._patiently(self._listener.accept, deadline)
            self._connection.settimeout(_LOOK_SECONDS)
        return self._connection

    def _patiently(self, receive: Callable[[], _T], deadline: float) -> _T:
        while True:
            try:
                return receive()
            except TimeoutError:
                self._look()
                if time.monotonic() > deadline:
                    raise GuestTimeoutError("the guest does not answer") from None
