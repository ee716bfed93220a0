"""The gdbstub is given to a debugger, and taken back, on request.

Requests come between two epochs, when every change is whole: no 0xCC of ours stands in the text.
That matters: a debugger may set breakpoints, and under KVM any breakpoint of the gdbstub keeps
each int3 from the guest's own handler.
"""

import logging
import time

from optpolined.api.requests import Answer
from optpolined.qemu.errors import ResumedError, StubBusyError
from optpolined.qemu.held import HeldStub
from optpolined.qemu.memory import StubMemory
from optpolined.session.link import Link
from optpolined.session.session import Session

__all__ = ("StubHandover",)

_log = logging.getLogger(__name__)

_WAIT_SECONDS = 20.0
"""How long the daemon waits for a debugger before it leaves without its gdbstub."""

_RETRY_SECONDS = 0.2


class StubHandover:
    """The gdbstub of ``guest``: it is ours, or a debugger has it."""

    def __init__(self, guest: str, link: Link, session: Session) -> None:
        assert link.stub is not None
        self._guest = guest
        self._link = link
        self._session = session
        self._stub: HeldStub = link.stub

    @property
    def is_released(self) -> bool:
        """Whether a debugger has the gdbstub, so that nothing may be poked."""
        return self._stub.is_released

    def take_to_leave(self) -> bool:
        """Take the stub back to put everything back; return whether a debugger let it go in time.

        :raise QemuError: QEMU failed.
        """
        deadline = time.monotonic() + _WAIT_SECONDS
        waits = False
        while True:
            self._link.alive()
            try:
                self._stub.take()
            except StubBusyError as error:
                if time.monotonic() >= deadline:
                    return False
                if not waits:
                    _log.warning("leaving, but %s: waiting %g s for its end", error, _WAIT_SECONDS)
                waits = True
            else:
                return True
            time.sleep(_RETRY_SECONDS)

    def release(self) -> Answer:
        """Give the stub up.

        :raise KernelError: the guest is not what it was.
        :raise QemuError: QEMU failed.
        """
        if isinstance(self._link.memory, StubMemory):
            return Answer(
                outcome="refused",
                says="the guest's memory is read through the gdbstub here: see the daemon's log",
            )
        if not self._stub.is_released:
            try:
                self._session.mend()
            except ResumedError as error:
                return Answer(outcome="failed", says=f"{error}: ask again")
            self._stub.release()
            _log.warning("the gdbstub at %s is released: nothing is changed now", self._stub.path)
        return Answer(
            outcome="done",
            says=f"gdb -ex 'target remote {self._stub.path}'; when it has ended: "
            f"optpolinectl take-stub --guest {self._guest}",
        )

    def take(self) -> Answer:
        """Take the stub back, unless a debugger still has it.

        :raise QemuError: QEMU failed.
        """
        if not self._stub.is_released:
            return Answer(outcome="done", says="the daemon has the gdbstub")
        try:
            self._stub.take()
        except StubBusyError as error:
            return Answer(outcome="refused", says=f"not taken back: {error}")
        status = self._link.monitor.status()
        _log.warning("the gdbstub is taken back; the guest is %s", status)
        if status == "running":
            return Answer(outcome="done", says="taken back")
        says = f"taken back; the guest stands ({status}): QMP cont resumes it"
        return Answer(outcome="done", says=says)
