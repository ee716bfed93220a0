"""The mailbox: what the host asks the guest's module to do.

    mailbox.request(RequestOp.GRACE)     # returns once no task sleeps in what was unlinked

The host writes ``request_op``, then ``request_seq``; the module serves the request, writes
``request_result`` and then ``request_done_seq = request_seq``.  A request is outstanding while the
two differ, also one of an earlier daemon.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import (
    RequestBusyError,
    RequestFailedError,
    RequestTimeoutError,
)
from optpolined.kernel.module.abi import RequestOp
from optpolined.kernel.module.header import Header, HeaderStatus, read_status
from optpolined.kernel.paging import AddressSpace

__all__ = ("Mailbox", "MailboxWrite", "Writer")

_FIRST_PAUSE_SECONDS = 0.0005
_LAST_PAUSE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class MailboxWrite:
    """Bytes to write over the ones that are expected."""

    address: GuestVirtual
    expected: bytes
    data: bytes


Writer = Callable[[Sequence[MailboxWrite]], None]
"""Makes the writes in order, and raises where other bytes than the expected ones stand."""


class Mailbox:
    """Requests to the module, one at a time."""

    def __init__(
        self,
        space: AddressSpace,
        header: Header,
        write: Writer,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._space = space
        self._header = header
        self._write = write
        self._clock = clock
        self._sleep = sleep

    def idle(self) -> bool:
        """Return whether no request is outstanding.

        :raise ModuleGoneError: the module is no longer there.
        """
        return _idle(self._status())

    def post(self, op: RequestOp) -> None:
        """Post a request and do not wait; :meth:`result` says when it is done.

        :raise RequestBusyError: another request is outstanding.
        :raise ModuleGoneError: the module is no longer there.
        """
        status = self._status()
        if not _idle(status):
            raise RequestBusyError(
                f"the guest's optpoline.ko still works on {_op_name(status.request_op)}"
            )
        sequence = (status.request_seq + 1) & 0xFFFF_FFFF
        self._write(
            (
                self._change("request_op", status.request_op, op),
                self._change("request_seq", status.request_seq, sequence),
            )
        )

    def result(self) -> bool:
        """Return whether the last request is done; ``False`` while it is outstanding.

        :raise RequestFailedError: it was answered with an errno.
        :raise ModuleGoneError: the module is no longer there.
        """
        status = self._status()
        if not _idle(status):
            return False
        if status.request_result:
            raise RequestFailedError(_op_name(status.request_op), abs(status.request_result))
        return True

    def request(self, op: RequestOp, *, timeout_seconds: float = 30.0) -> None:
        """Post a request and wait until it is done, after any outstanding request.

        The guest must run, and may be slow: GRACE waits for every task to leave preempted code.

        :raise RequestTimeoutError: no answer in time; the request stays outstanding.
        :raise RequestFailedError: it was answered with an errno.
        :raise ModuleGoneError: the module is no longer there.
        """
        deadline = self._clock() + timeout_seconds
        self._wait(self.idle, op, deadline)
        self.post(op)
        self._wait(self.result, op, deadline)

    def _wait(self, done: Callable[[], bool], op: RequestOp, deadline: float) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not done():
            left = deadline - self._clock()
            if left <= 0:
                raise RequestTimeoutError(
                    f"the guest's optpoline.ko did not answer {op.name} in time: "
                    "is the guest running?"
                )
            self._sleep(min(pause, left))
            pause = min(2 * pause, _LAST_PAUSE_SECONDS)

    def _status(self) -> HeaderStatus:
        return read_status(self._space, self._header)

    def _change(self, field: str, before: int, after: int) -> MailboxWrite:
        return MailboxWrite(
            self._header.field(field), before.to_bytes(4, "little"), after.to_bytes(4, "little")
        )


def _idle(status: HeaderStatus) -> bool:
    return status.request_seq == status.request_done_seq


def _op_name(op: int) -> str:
    try:
        return RequestOp(op).name
    except ValueError:
        return f"request {op}"
