"""QEMU's gdbstub as a way to stop the guest for a moment and to read and write its memory.

Why the protocol looks the way it does here (QEMU 7.2 gdbstub/gdbstub.c, ``gdb_read_byte``):

- Any byte that arrives while the guest runs stops it and is thrown away.  So :meth:`GdbStub.stop`
  sends a burst of two queries, whose replies tell whether it stopped the guest
  (:mod:`~optpolined.qemu.conversation`).
- For the same reason our next packet stops a guest that something else resumes in the middle of a
  stop.  That packet is lost, and a stop packet (``T02...``) comes instead of its reply.
- A ``$`` makes the stub forget a reply that was not acknowledged.  So nothing is ever acknowledged,
  and a whole window of packets goes out in one send.
- The stub writes its replies with blocking writes from QEMU's main loop.  A window is therefore
  small enough that neither side's socket buffer can fill.
- Connecting stops the guest.  Closing never resumes it.

One case cannot be told: another client's QMP ``stop`` within a stop of ours.  QEMU takes it as
done, says nothing, and the guest runs on at the end of our stop.
"""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn, Self

from optpolined.addresses import GuestPhysical
from optpolined.qemu import rsp
from optpolined.qemu.chunks import read_chunks, windows, write_chunks
from optpolined.qemu.conversation import Conversation
from optpolined.qemu.errors import (
    QemuError,
    ResumedError,
    StubAbsentError,
    StubClosedError,
    StubProtocolError,
    StubReadError,
    StubTimeoutError,
    StubWriteError,
)
from optpolined.qemu.quirks import WINDOW_PACKETS
from optpolined.qemu.sockets import connect_unix, explain
from optpolined.qemu.states import IN_STOP, UNUSABLE, USABLE, StubState, require
from optpolined.qemu.stopnote import StopGuard
from optpolined.qemu.stub_setup import close_stub, open_stub

__all__ = ("GdbStub", "close_stub", "open_stub")

_RESUMES = 20
"""How often one end of a stop is tried while something else resumes the guest in between."""

_WROTE = b"+" + rsp.packet(b"OK")
_ALL_WROTE = tuple(_WROTE * count for count in range(WINDOW_PACKETS + 1))

_RESUMED = "the guest was resumed from outside during a stop"
_ENDLESS = "the guest is resumed from outside again and again"


class GdbStub:
    """A connection to the gdbstub, in physical memory mode; for one thread.

    Between :meth:`stop` and :meth:`resume` the guest's memory is read and written.  Every method
    returns or raises within the connection's timeout, whatever the peer does.  After
    StubTimeoutError, StubProtocolError or StubClosedError the connection is of no use any more, and
    the guest may still be stopped: QMP ``cont`` helps then.

    :attr:`state` says which calls are allowed; a call in another state raises StubStateError, or
    StubClosedError where the connection cannot be used (:mod:`~optpolined.qemu.states`).
    """

    def __init__(
        self, connection: socket.socket, *, timeout_seconds: float, guard: StopGuard | None = None
    ) -> None:
        """Take over ``connection``; :meth:`connect` is what callers want."""
        # A call may wait twice: for its replies, then to learn what has become of them.
        self._conversation = Conversation(connection, timeout_seconds / 2)
        self._guard = guard
        self._state = StubState.IDLE
        self._unusable_because = ""

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

        Connecting stops the guest for about a millisecond.  It also removes the breakpoints that a
        debugger left, because nothing would resume a guest that meets one.  See first that no other
        client is connected (:func:`open_stub`): QEMU would queue us silently, and stop the guest
        much later.

        :param guard: Is told of each stop, of this one too.
        :param vcpus: How many the guest has.
        :raise StubAbsentError: nothing listens at ``path``.
        :raise StubTimeoutError: no answer; another client may be connected.
        :raise StubProtocolError: what answers is not QEMU's gdbstub.
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
    def state(self) -> StubState:
        """Which calls are allowed now."""
        return self._state

    @property
    def unusable_because(self) -> str:
        """Why the connection cannot be used; empty while it can."""
        return self._unusable_because

    @property
    def in_stop(self) -> bool:
        """Whether a stop is open: :meth:`read` and :meth:`write` work only then."""
        return self._state in IN_STOP

    @require(StubState.IDLE)
    def stop(self) -> bool:
        """Stop the guest.

        :return: Whether this stopped it.  False: the guest was stopped before; then
            :meth:`resume` will not resume it.
        :raise StubStateError: a stop is open already.
        :raise StubError: the stub failed; :meth:`close` then tries to let the guest run.
        """
        with self._call():
            self._enter()
            self._conversation.ask()
            self._note_who_stopped(self._conversation.settle())
        ours = self._state is StubState.STOPPED
        if self._guard and not ours:
            self._guard.resumed()
        return ours

    @require(*USABLE)
    def resume(self) -> None:
        """End the stop: the guest runs again where :meth:`stop` stopped it.

        Without an open stop this does nothing, so that it can stand in a ``finally``.

        :raise ResumedError: something else had resumed the guest before; it runs.
        :raise StubError: the stub failed.
        """
        if self._state is StubState.IDLE:
            return
        with self._call():
            if not self._conversation.is_settled:
                self._note_who_stopped(self._conversation.resettle())
            again = self._state is StubState.STOPPED and not self._conversation.resume()
            if again:
                self._conversation.resettle()
                self._insist()
            self._leave()
        if again:
            raise ResumedError(_RESUMED)

    @require(*IN_STOP)
    def read(self, requests: Sequence[tuple[GuestPhysical, int]]) -> list[bytes]:
        """Read physical memory, within a stop.  What is not RAM gives anything: check first.

        :param requests: Address and size in bytes of each piece.
        :raise StubStateError: no stop is open.
        :raise OutOfRamError: no physical address is that large.
        :raise StubReadError: the stub refused.
        :raise ResumedError: something else resumed the guest; the stop has ended.
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

    @require(*IN_STOP)
    def write(self, writes: Sequence[tuple[GuestPhysical, bytes]]) -> None:
        """Write physical memory, within a stop, in the order given.

        :param writes: Address and bytes of each piece.
        :raise StubStateError: no stop is open.
        :raise OutOfRamError: no physical address is that large.
        :raise StubWriteError: the stub refused one; later ones may have been made.
        :raise ResumedError: something else resumed the guest; the stop has ended.
        """
        for window in windows(write_chunks(writes), lambda chunk: 2 * len(chunk[1]) + 32):
            packets = [rsp.write_packet(*chunk) for chunk in window]
            replies = self._exchange(packets, _ALL_WROTE[len(window)])
            for (address, _), reply in zip(window, replies, strict=False):
                if rsp.is_error(reply):
                    raise StubWriteError(address, reply.decode("ascii", "replace"))
                if reply != b"OK":
                    self._misunderstood(f"a write of physical {address:#x}")

    @require(*USABLE)
    def drain(self) -> None:
        """Take what the stub said while the guest ran; call this now and then.

        The stub reports every stop of the guest, also those of others.  When some hundred reports
        have not been taken, QEMU's main loop waits until they are.  Within a stop this does
        nothing.

        :raise StubError: QEMU hung up, or sent something else.
        """
        if self._state is StubState.IDLE:
            with self._call():
                self._conversation.drain()

    def hand_over(self) -> None:
        """Close the connection, and leave the stub as a debugger expects it: addresses virtual.

        The memory mode belongs to QEMU and outlives the connection.  The connection is closed also
        where this fails.

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
            raise StubProtocolError(_ENDLESS)
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection, in any state; again does nothing.

        A guest that this connection has stopped runs again, if the stub still works.
        """
        try:
            with contextlib.suppress(QemuError):
                self._let_run()
        finally:
            if self._state is not StubState.CLOSED:
                self._state, self._unusable_because = StubState.CLOSED, "it was closed"
            self._conversation.close()

    def _let_run(self) -> None:
        if self._state is StubState.BROKEN_IN_STOP:
            # The stub takes what was sent in its order, so this ends the stop even where that has
            # yet to begin.  Whether it did is not certain: the guard is not told.
            self._conversation.begin()
            self._conversation.resume()
        elif self._state in IN_STOP:
            self.resume()

    def _greet(self, vcpus: int) -> None:
        with self._call():
            self._enter()
            replies = self._conversation.greet(vcpus)
            self._note_who_stopped(any(rsp.is_pause(reply) for reply in replies))
            rsp.check_greeting(replies)
        self.resume()

    def _exchange(self, packets: list[bytes], expected: bytes = b"") -> list[bytes]:
        """Send a window and take its replies; an empty list where they are as ``expected``."""
        with self._call():
            if not self._conversation.is_settled:
                self._note_who_stopped(self._conversation.resettle())
            self._conversation.send(packets)
            if expected and self._conversation.takes(expected):
                return []
            replies = self._replies(len(packets))
        if replies is None:
            raise ResumedError(_RESUMED)
        return replies

    def _replies(self, count: int) -> list[bytes] | None:
        """Take ``count`` replies.

        ``None`` where something else resumed the guest; the stop has ended.
        """
        replies, late = self._conversation.replies(count)
        if len(replies) == count:
            return replies
        others: list[bytes] = []
        stopped_again = self._conversation.resettle(others) or len(replies) + len(others) < count
        if late and not stopped_again:
            raise late
        # A packet of ours has stopped the guest again, unless all were answered.  Then something
        # else resumed the guest and stopped it again, and that pause stays.
        if stopped_again:
            self._state = StubState.STOPPED
            self._insist()
        self._leave()
        return None

    def _note_who_stopped(self, ours: bool) -> None:
        """Note whether a burst of ours has just stopped the guest."""
        if ours:
            self._state = StubState.STOPPED
        elif self._state is StubState.STOPPING:
            self._state = StubState.PAUSED

    def _insist(self) -> None:
        """Resume the guest that a packet of ours has stopped again.

        Where something else was quicker, our ``c`` has stopped it once more: then this tries again.
        """
        for _ in range(_RESUMES):
            if self._conversation.resume():
                return
            self._conversation.ask()
            self._conversation.settle()
        raise StubProtocolError(_ENDLESS)

    def _enter(self) -> None:
        if self._guard:
            self._guard.stopping()
        self._state = StubState.STOPPING

    def _leave(self) -> None:
        self._state = StubState.IDLE
        if self._guard:
            self._guard.resumed()

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """Start the clock; remember what makes the connection unusable."""
        self._conversation.begin()
        try:
            yield
        except (StubTimeoutError, StubProtocolError, StubClosedError) as error:
            self._break(str(error))
            raise

    def _break(self, reason: str) -> None:
        if self._state not in UNUSABLE:
            may_stand = self._state in (StubState.STOPPING, StubState.STOPPED)
            self._state = StubState.BROKEN_IN_STOP if may_stand else StubState.BROKEN
            self._unusable_because = reason

    def _decode(self, address: GuestPhysical, size: int, reply: bytes) -> bytes:
        if rsp.is_error(reply):
            raise StubReadError(address, reply.decode("ascii", "replace"))
        data = rsp.data(reply)
        if data is None or len(data) != size:
            self._misunderstood(f"a read of {size} bytes at physical {address:#x}")
        return data

    def _misunderstood(self, what: str) -> NoReturn:
        reason = f"the gdbstub answered {what} with something else"
        self._break(reason)
        raise StubProtocolError(reason)
