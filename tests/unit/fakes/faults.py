"""What can go wrong with the bytes that a peer sends."""

import itertools
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ("NO_FAULTS", "Faults", "Outlet")


@dataclass(frozen=True)
class Faults:
    """Applied to everything that a fake sends, in this order.

    ``garble`` maps places in the outgoing stream to what is XORed to the byte there.
    ``hang_up_after`` and ``silent_after`` count outgoing bytes.  ``sizes`` are the sizes of the
    pieces, over and over; ``delay_seconds`` is waited before each piece.  ``flood`` is sent without
    end instead of the first answer.
    """

    garble: Mapping[int, int] = field(default_factory=dict)
    hang_up_after: int | None = None
    silent_after: int | None = None
    sizes: Sequence[int] = ()
    delay_seconds: float = 0.0
    flood: bytes = b""


NO_FAULTS = Faults()


class Outlet:
    """Sends to a socket, with faults; ``stop`` ends every wait."""

    def __init__(self, connection: socket.socket, faults: Faults, stop: threading.Event) -> None:
        self._connection = connection
        self._faults = faults
        self._stop = stop
        self._sent = 0
        self._sizes = itertools.cycle(faults.sizes or (0x10000,))
        self._lock = threading.RLock()

    def send(self, data: bytes) -> None:
        """Send ``data`` as the faults have it.

        :raise ConnectionError: the faults, or the peer, have ended the connection.
        """
        with self._lock:
            if self._faults.flood:
                while not self._stop.is_set():
                    self._connection.sendall(self._faults.flood)
                raise ConnectionAbortedError
            data = bytes(
                byte ^ self._faults.garble.get(self._sent + place, 0)
                for place, byte in enumerate(data)
            )
            limit = self._faults.hang_up_after
            if limit is not None and self._sent + len(data) >= limit:
                self._pieces(data[: limit - self._sent])
                raise ConnectionAbortedError
            limit = self._faults.silent_after
            if limit is not None:
                data = data[: max(0, limit - self._sent)]
            self._pieces(data)

    def _pieces(self, data: bytes) -> None:
        while data:
            size = next(self._sizes)
            if self._faults.delay_seconds and self._stop.wait(self._faults.delay_seconds):
                raise ConnectionAbortedError
            self._connection.sendall(data[:size])
            self._sent += len(data[:size])
            data = data[size:]
