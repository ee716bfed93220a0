"""The byte stream to a gdbstub: sends packets, cuts out replies, never waits beyond a deadline."""

import socket
import time

from optpolined.qemu import rsp
from optpolined.qemu.errors import StubClosedError, StubProtocolError, StubTimeoutError
from optpolined.qemu.sockets import set_receive_timeout

__all__ = ("Wire",)

_CHUNK = 0x10000
_DRAIN_BYTES = 1 << 20
"""QEMU's socket holds some hundred stop packets; this is 50,000 of them."""

_NO_ANSWER = "the gdbstub does not answer; another gdb may be connected"


class Wire:
    """A connected socket and what was received from it; for one thread.

    Every method that waits raises

    - StubTimeoutError: the deadline that :meth:`begin` has set is past;
    - StubClosedError: QEMU hung up;
    - StubProtocolError: the bytes are not packets.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._replies = rsp.Replies()
        self._deadline = 0.0
        self._armed_seconds = 0.0

    def begin(self, seconds: float) -> None:
        """Give what follows ``seconds`` in all."""
        self._deadline = time.monotonic() + seconds

    def send(self, data: bytes) -> None:
        """Send all of ``data``.

        Whatever was sent before has been answered, so ``data`` fits the socket's buffer at once,
        or the peer does not read.
        """
        try:
            sent = self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise StubClosedError(f"the gdbstub connection broke: {error.strerror}") from error
        if sent < len(data):
            raise StubTimeoutError("the gdbstub does not take what is sent to it")

    def next_reply(self, *, skip_noise: bool = False) -> bytes:
        """Wait for the next reply; see :meth:`optpolined.qemu.rsp.Replies.take`."""
        while (reply := self._replies.take(skip_noise=skip_noise)) is None:
            self._replies.feed(self._receive(_CHUNK))
        return reply

    def next_ack(self) -> bool:
        """Wait for an acknowledgement; return false where a stop packet comes in its place."""
        while not self._replies.take_ack():
            reply = self._replies.take()
            if reply is not None:
                _expect_stop(reply)
                return False
            self._replies.feed(self._receive(_CHUNK))
        return True

    def matches(self, expected: bytes) -> bool:
        """Wait for as many bytes as ``expected`` has.

        :return: Whether they are equal.  Where not, they are left to :meth:`next_reply`.
        """
        data = self._receive(len(expected), socket.MSG_WAITALL)
        if not self._replies and data == expected:
            return True
        self._replies.feed(data)
        return False

    def drain(self) -> None:
        """Drop the stop packets that have come, without waiting."""
        left = _DRAIN_BYTES
        while data := self._receive_now():
            left -= len(data)
            if left < 0:
                raise StubProtocolError("the gdbstub reports stops without end")
            self._replies.feed(data)
            while (reply := self._replies.take()) is not None:
                _expect_stop(reply)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _receive(self, size: int, flags: int = 0) -> bytes:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise StubTimeoutError(_NO_ANSWER)
        # Arming costs a system call: an alarm that is a little early or late is good enough.
        if not 0.9 * self._armed_seconds <= remaining <= self._armed_seconds:
            set_receive_timeout(self._socket, remaining)
            self._armed_seconds = remaining
        try:
            data = self._socket.recv(size, flags)
        except BlockingIOError as error:
            raise StubTimeoutError(_NO_ANSWER) from error
        except OSError as error:
            raise StubClosedError(f"the gdbstub connection broke: {error.strerror}") from error
        if not data:
            raise StubClosedError("QEMU closed the gdbstub connection")
        return data

    def _receive_now(self) -> bytes:
        try:
            data = self._socket.recv(_CHUNK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise StubClosedError(f"the gdbstub connection broke: {error.strerror}") from error
        if not data:
            raise StubClosedError("QEMU closed the gdbstub connection")
        return data


def _expect_stop(reply: bytes) -> None:
    if not rsp.is_stop(reply):
        raise StubProtocolError("the gdbstub says more than it was asked")
