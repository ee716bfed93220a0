"""What was asked of a gdbstub and has not been answered yet.

A *burst* is two queries in one send: ``qC``, then a *marker*.  Any byte that arrives while the
guest runs stops it and is thrown away.  So the marker is always answered, and ``qC`` only where the
guest stood still.  That tells who stopped the guest, without a timeout.
"""

import socket

from optpolined.qemu import rsp
from optpolined.qemu.errors import StubProtocolError, StubTimeoutError
from optpolined.qemu.quirks import WINDOW_PACKETS
from optpolined.qemu.wire import Wire

__all__ = ("Conversation",)

_REPLIES_MAX = 4 * WINDOW_PACKETS
"""More replies than anything that was asked can have."""


class Conversation:
    """Bursts, windows of packets, and their replies; for one thread.

    Every method that waits raises what :class:`~optpolined.qemu.wire.Wire` raises.  An exception,
    Ctrl-C included, can leave replies on their way: then :attr:`is_settled` is false, and
    :meth:`resettle` finds their end.
    """

    def __init__(self, connection: socket.socket, patience_seconds: float) -> None:
        self._wire = Wire(connection)
        self._patience_seconds = patience_seconds
        self._markers = 0
        """Bursts whose marker has not been answered yet."""
        self._unanswered = 0
        """``qC`` without an answer, of these bursts and of those that ended since the last count.
        An exception may come between the two answers of a burst."""
        self.is_settled = True
        """Whether nothing is on its way."""

    def begin(self) -> None:
        """Give what follows the whole patience."""
        self._wire.begin(self._patience_seconds)

    def greet(self, vcpus: int) -> list[bytes]:
        """Send the greeting, and return its replies; see :func:`rsp.greeting`."""
        self.is_settled = False
        self._markers = 1
        self._wire.send(rsp.greeting(vcpus))
        replies: list[bytes] = []
        while (reply := self._wire.next_reply(skip_noise=True)) != rsp.MARKER_REPLY:
            replies.append(reply)
            if len(replies) > WINDOW_PACKETS:
                raise StubProtocolError("what answers is not QEMU's gdbstub")
        self._markers, self.is_settled = 0, True
        return replies

    def ask(self) -> None:
        """Send a burst, which stops a guest that runs."""
        self.is_settled = False
        self._markers += 1
        self._unanswered += 1
        self._wire.send(rsp.STOP)

    def settle(self, others: list[bytes] | None = None) -> bool:
        """Wait for the marker of each burst that was sent.

        :param others: Receives the replies to other packets.
        :return: Whether one of the bursts stopped the guest.
        """
        for _ in range(_REPLIES_MAX):
            reply = self._wire.next_reply()
            if reply == rsp.MARKER_REPLY:
                self._markers -= 1
                if not self._markers:
                    unanswered, self._unanswered = self._unanswered, 0
                    self.is_settled = True
                    return unanswered > 0
            elif reply.startswith(b"QC"):
                self._unanswered -= 1
            elif others is not None and not rsp.is_stop(reply):
                others.append(reply)
        raise StubProtocolError("the gdbstub says more than it was asked")

    def resettle(self, others: list[bytes] | None = None) -> bool:
        """Find the end of what is on its way, with the whole patience; see :meth:`settle`."""
        self.begin()
        self.ask()
        return self.settle(others)

    def send(self, packets: list[bytes]) -> None:
        """Send a window of packets."""
        self.is_settled = False
        self._wire.send(b"".join(packets))

    def takes(self, expected: bytes) -> bool:
        """Wait for the bytes that answer a window; false where :meth:`replies` has to take them."""
        self.is_settled = self._wire.matches(expected)
        return self.is_settled

    def replies(self, count: int) -> tuple[list[bytes], StubTimeoutError | None]:
        """Take the replies to a window of ``count`` packets.

        There are fewer where a stop packet or a timeout came first; the timeout is returned.
        """
        replies: list[bytes] = []
        try:
            while len(replies) < count:
                reply = self._wire.next_reply()
                if rsp.is_stop(reply):
                    return replies, None
                replies.append(reply)
        except StubTimeoutError as error:
            return replies, error
        self.is_settled = True
        return replies, None

    def resume(self) -> bool:
        """Resume the guest.  False where it ran already: then this has stopped it."""
        self.is_settled = False
        self._wire.send(rsp.CONTINUE)
        resumed = self._wire.next_ack()
        self.is_settled = True
        return resumed

    def drain(self) -> None:
        """Drop the stop packets that have come, without waiting."""
        self._wire.drain()

    def close(self) -> None:
        """Close the connection."""
        self._wire.close()
