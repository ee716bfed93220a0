"""A unix socket server in a thread, for one client at a time, as QEMU's are."""

import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from tests.unit.fakes.faults import Faults, Outlet

__all__ = ("FakeServer",)


class FakeServer(ABC):
    """Serves clients one after the other until it is closed; use as a context manager."""

    def __init__(self, path: Path, faults: Faults) -> None:
        self.path = path
        self.clients = 0
        self._faults = faults
        self._stop = threading.Event()
        self._listener: socket.socket
        self._connection: socket.socket | None = None
        self._outlet: Outlet | None = None
        self._thread = threading.Thread(target=self._serve, name=type(self).__name__, daemon=True)

    def __enter__(self) -> Self:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(1)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        self._thread.join()
        self._listener.close()
        self.path.unlink()

    def hang_up(self) -> None:
        """Cut the client off."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def say(self, data: bytes) -> None:
        """Send ``data`` to the client, unasked."""
        assert self._outlet is not None
        self._outlet.send(data)

    @abstractmethod
    def opened(self, outlet: Outlet) -> None:
        """React to a new client."""

    @abstractmethod
    def received(self, data: bytes, outlet: Outlet) -> None:
        """React to what a client sent."""

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.clients += 1
            with connection, contextlib.suppress(ConnectionError):
                self._connection = connection
                self._outlet = Outlet(connection, self._faults, self._stop)
                self.opened(self._outlet)
                while data := connection.recv(4096):
                    self.received(data, self._outlet)
            self._outlet = self._connection = None
