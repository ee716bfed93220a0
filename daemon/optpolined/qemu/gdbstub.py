"""QEMU's gdbstub as a way to stop the guest for a moment and to read and write its memory.

Why the protocol looks the way it does here (QEMU 7.2 gdbstub/gdbstub.c, ``gdb_read_byte``):

- Any byte that arrives while the guest runs stops it and is thrown away.  So :meth:`GdbStub.stop`
  sends two queries in one burst: where the guest ran, the ``$`` of the first stops it, the rest of
  that query is noise between packets, and only the second is answered; where it was stopped
  already, both are.  That tells who stopped it, without a timeout.
- For the same reason a guest that somebody resumes in the middle of a stop is stopped again by our
  next packet, which is lost, and a stop packet (``T02...``) comes instead of its reply.
- A ``$`` makes the stub forget a reply that was not acknowledged.  So nothing is ever acknowledged,
  and a whole window of packets goes out in one send.
- The stub writes its replies with blocking writes from QEMU's main loop.  A window is therefore
  small enough that neither side's socket buffer can fill.
- Connecting stops the guest.  Closing never resumes it.

Who stopped it cannot be told where somebody's QMP ``stop`` falls into a stop of ours: QEMU takes
it as done, says nothing, and the guest runs on at the end of our stop.
"""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn, Self

from optpolined.addresses import GuestPhysical
from optpolined.qemu import rsp
from optpolined.qemu.chunks import WINDOW_PACKETS, read_chunks, windows, write_chunks
from optpolined.qemu.errors import (
    QemuError,
    ResumedError,
    StubAbsentError,
    StubClosedError,
    StubProtocolError,
    StubReadError,
    StubStateError,
    StubTimeoutError,
    StubWriteError,
)
from optpolined.qemu.sockets import connect_unix, explain
from optpolined.qemu.stopnote import StopGuard
from optpolined.qemu.stub_setup import close_stub, open_stub
from optpolined.qemu.wire import Wire

__all__ = ("GdbStub", "close_stub", "open_stub")

_RESUMES = 20
"""How often one end of a stop is tried where somebody else resumes the guest in between."""

_WROTE = b"+" + rsp.packet(b"OK")
_ALL_WROTE = tuple(_WROTE * count for count in range(WINDOW_PACKETS + 1))


class GdbStub:
    """A connection to the gdbstub, in physical memory mode; for one thread.

    Between :meth:`stop` and :meth:`resume` the guest's memory is read and written.  Every method
    returns or raises within the connection's timeout, whatever the peer does.  After
    StubTimeoutError, StubProtocolError or StubClosedError the connection is of no use any more, and
    the guest may stand stopped: QMP ``cont`` helps then.
    """

    def __init__(
        self, connection: socket.socket, *, timeout_seconds: float, guard: StopGuard | None = None
    ) -> None:
        """Take over ``connection``; :meth:`connect` is what callers want."""
        self._wire = Wire(connection)
        self._guard = guard
        # A call may wait twice: for its replies, then to learn what has become of them.
        self._patience_seconds = timeout_seconds / 2
        self._in_stop = False
        self._ours: bool | None = False
        """Whether the open stop is our doing; None: it is not known yet."""
        self._asked = 0
        """Bursts whose marker has not been answered yet."""
        self._unanswered = 0
        """Of those, and of the answered ones since, the ``qC`` without an answer; an exception may
        come between the two answers of a burst."""
        self._settled = True
        """Nothing is on its way.  An exception, say of Ctrl-C, can leave replies behind."""
        self._useless: str | None = None

    @classmethod
    def connect(
        cls,
        path: Path,
        *,
        timeout_seconds: float = 5,
        guard: StopGuard | None = None,
        vcpus: int = 1,
    ) -> Self:
        """Connect, set physical memory mode, and let the guest run again if it ran.

        Connecting stops the guest for about a millisecond, and removes a debugger's breakpoints:
        nobody would resume a guest that meets one.  See first that nobody else is connected
        (:func:`open_stub`): QEMU would queue us silently, and stop the guest much later.

        :param guard: Is told of each stop, of this one too.
        :param vcpus: How many the guest has.
        :raise StubAbsentError: nobody listens there.
        :raise StubTimeoutError: no answer; another client may be connected.
        :raise StubProtocolError: it is not QEMU's gdbstub.
        """
        try:
            connection = connect_unix(path, timeout_seconds=timeout_seconds)
        except BlockingIOError as error:
            raise StubTimeoutError(explain(path, error)) from error
        except OSError as error:
            raise StubAbsentError(explain(path, error)) from error
        stub = cls(connection, timeout_seconds=timeout_seconds, guard=guard)
        try:
            stub._greet(vcpus)
        except BaseException:
            stub.close()
            raise
        return stub

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def in_stop(self) -> bool:
        """Whether a stop is open: :meth:`read` and :meth:`write` work only then."""
        return self._in_stop

    def stop(self) -> bool:
        """Stop the guest.

        :return: Whether this stopped it.  False: somebody else had stopped it before; then
            :meth:`resume` will not resume it.
        :raise StubStateError: a stop is open already.
        :raise StubError: the stub failed; :meth:`close` then tries to let the guest run.
        """
        if self._in_stop:
            raise StubStateError("stop() within a stop")
        with self._call():
            self._enter()
            self._ask()
            ours = self._ours = self._settle() > 0
        if self._guard and not ours:
            self._guard.resumed()
        return ours

    def resume(self) -> None:
        """End the stop: the guest runs again where :meth:`stop` stopped it.

        Without an open stop this does nothing, so that it can stand in a ``finally``.

        :raise ResumedError: somebody else had resumed the guest before; it runs.
        :raise StubError: the stub failed.
        """
        with self._call():
            if not self._in_stop:
                return
            if not self._settled:
                unanswered = self._resettle()
                self._ours = unanswered > 0 if self._ours is None else self._ours
            again = self._ours and not self._continue()
            if again:
                self._resettle()
                self._insist()
            self._leave()
        if again:
            raise ResumedError("the guest was resumed from outside during a stop")

    def read(self, requests: Sequence[tuple[GuestPhysical, int]]) -> list[bytes]:
        """Read physical memory, within a stop.  What is not RAM gives anything: check first.

        :param requests: Address and size in bytes of each piece.
        :raise OutOfRamError: no physical address is that large.
        :raise StubReadError: the stub refused.
        :raise ResumedError: somebody resumed the guest; the stop has ended.
        """
        data = bytearray()
        for window in windows(read_chunks(requests), lambda chunk: 2 * chunk[1] + 8):
            replies = self._exchange([rsp.read_packet(*chunk) for chunk in window])
            for (address, size), reply in zip(window, replies, strict=True):
                data += self._decode(address, size, reply)
        found, position = [], 0
        for _, size in requests:
            found.append(bytes(data[position : position + size]))
            position += size
        return found

    def write(self, writes: Sequence[tuple[GuestPhysical, bytes]]) -> None:
        """Write physical memory, within a stop, in the order given.

        :param writes: Address and bytes of each piece.
        :raise OutOfRamError: no physical address is that large.
        :raise StubWriteError: the stub refused one; later ones may have been made.
        :raise ResumedError: somebody resumed the guest; the stop has ended.
        """
        for window in windows(write_chunks(writes), lambda chunk: 2 * len(chunk[1]) + 32):
            packets = [rsp.write_packet(*chunk) for chunk in window]
            replies = self._exchange(packets, _ALL_WROTE[len(window)])
            for (address, _), reply in zip(window, replies, strict=False):
                if rsp.is_error(reply):
                    raise StubWriteError(address, reply.decode("ascii", "replace"))
                if reply != b"OK":
                    self._misunderstood(f"a write of physical {address:#x}")

    def drain(self) -> None:
        """Take what the stub said while the guest ran; to be called now and then.

        The stub reports every stop of the guest, also those of others.  Where nobody takes the
        reports, QEMU's main loop will after some hundred of them wait until somebody does.

        :raise StubError: QEMU hung up, or sent something else.
        """
        with self._call():
            if not self._in_stop:
                self._wire.drain()

    def hand_over(self) -> None:
        """Close the connection, and leave the stub as a debugger expects it: addresses virtual.

        The memory mode is QEMU's, not the connection's, which is closed also where this fails.

        :raise StubStateError: a stop is open.
        :raise StubError: the stub failed, and may have been left in physical memory mode.
        """
        try:
            for _ in range(_RESUMES):
                with contextlib.suppress(ResumedError):
                    self.stop()
                    if self._exchange([rsp.VIRTUAL]) != [b"OK"]:
                        self._misunderstood("the end of physical memory mode")
                    self.resume()
                    return
            raise StubProtocolError("the guest is resumed from outside again and again")
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection; a guest that we stopped runs again, if the stub still works."""
        if self._in_stop:
            with contextlib.suppress(QemuError):
                if self._useless is None:
                    self.resume()
                elif self._ours is not False:
                    self._useless = None
                    self._resume_blindly()
        self._in_stop = False
        self._useless = "it was closed"
        self._wire.close()

    def _greet(self, vcpus: int) -> None:
        with self._call():
            self._enter()
            self._asked = 1
            self._wire.send(rsp.greeting(vcpus))
            replies: list[bytes] = []
            while (reply := self._wire.next_reply(skip_noise=True)) != rsp.MARKER_REPLY:
                replies.append(reply)
                if len(replies) > WINDOW_PACKETS:
                    raise StubProtocolError("what answers is not QEMU's gdbstub")
            self._asked, self._settled = 0, True
            self._ours = any(rsp.is_pause(reply) for reply in replies)
            rsp.check_greeting(replies)
        self.resume()

    def _exchange(self, packets: list[bytes], expected: bytes = b"") -> list[bytes]:
        """Send a window and take its replies; an empty list where they are as ``expected``."""
        if not self._in_stop:
            raise StubStateError("memory is read and written within a stop only")
        with self._call():
            if not self._settled:
                self._resettle()
            self._settled = False
            self._wire.send(b"".join(packets))
            if expected and self._wire.matches(expected):
                replies: list[bytes] | None = []
            else:
                replies = self._replies(len(packets))
            self._settled = True
        if replies is None:
            raise ResumedError("the guest was resumed from outside during a stop")
        return replies

    def _replies(self, count: int) -> list[bytes] | None:
        """Take ``count`` replies.  None where somebody resumed the guest; the stop has ended."""
        replies: list[bytes] = []
        late: StubTimeoutError | None = None
        try:
            while len(replies) < count:
                reply = self._wire.next_reply()
                if rsp.is_stop(reply):
                    break
                replies.append(reply)
            else:
                return replies
        except StubTimeoutError as error:
            late = error
        others: list[bytes] = []
        stopped_again = self._resettle(others) > 0 or len(replies) + len(others) < count
        if late and not stopped_again:
            raise late
        # It was a packet of ours that stopped the guest again, unless all were answered: then it
        # was somebody who resumed it and then stopped it, and his pause stays.
        if stopped_again:
            self._insist()
        self._leave()
        return None

    def _ask(self) -> None:
        self._settled = False
        self._asked += 1
        self._unanswered += 1
        self._wire.send(rsp.STOP)

    def _settle(self, others: list[bytes] | None = None) -> int:
        """Wait for the marker of each burst sent: how many of their ``qC`` were not answered.

        :param others: Receives the replies to other packets.
        """
        for _ in range(4 * WINDOW_PACKETS):
            reply = self._wire.next_reply()
            if reply == rsp.MARKER_REPLY:
                self._asked -= 1
                if not self._asked:
                    unanswered, self._unanswered = self._unanswered, 0
                    self._settled = True
                    return unanswered
            elif reply.startswith(b"QC"):
                self._unanswered -= 1
            elif others is not None and not rsp.is_stop(reply):
                others.append(reply)
        raise StubProtocolError("the gdbstub says more than it was asked")

    def _resettle(self, others: list[bytes] | None = None) -> int:
        """Find the end of what is on its way, with new patience; see :meth:`_settle`."""
        self._wire.begin(self._patience_seconds)
        self._ask()
        return self._settle(others)

    def _continue(self) -> bool:
        """Resume the guest; False where it ran, and has been stopped by this."""
        self._wire.send(rsp.CONTINUE)
        return self._wire.next_ack()

    def _resume_blindly(self) -> None:
        """Resume the guest after an error.

        The stub takes what was sent in its order, so that this ends the stop even where that has
        yet to begin.  Whether it did is not certain: the guard is not told.
        """
        with self._call():
            self._continue()

    def _insist(self) -> None:
        """Resume the guest that a packet of ours has stopped again.

        Where somebody was quicker, our ``c`` has stopped it once more: the next one shall do.
        """
        for _ in range(_RESUMES):
            if self._continue():
                return
            self._ask()
            self._settle()
        raise StubProtocolError("the guest is resumed from outside again and again")

    def _enter(self) -> None:
        if self._guard:
            self._guard.stopping()
        self._in_stop = True
        self._ours = None
        self._settled = False

    def _leave(self) -> None:
        self._in_stop = self._ours = False
        if self._guard:
            self._guard.resumed()

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """Start the clock; remember what makes the connection useless."""
        if self._useless:
            raise StubClosedError(f"the gdbstub connection cannot be used: {self._useless}")
        self._wire.begin(self._patience_seconds)
        try:
            yield
        except (StubTimeoutError, StubProtocolError, StubClosedError) as error:
            self._useless = str(error)
            raise

    def _decode(self, address: GuestPhysical, size: int, reply: bytes) -> bytes:
        if rsp.is_error(reply):
            raise StubReadError(address, reply.decode("ascii", "replace"))
        data = rsp.data(reply)
        if data is None or len(data) != size:
            self._misunderstood(f"a read of {size} bytes at physical {address:#x}")
        return data

    def _misunderstood(self, what: str) -> NoReturn:
        self._useless = f"the gdbstub answered {what} with something else"
        raise StubProtocolError(self._useless)
