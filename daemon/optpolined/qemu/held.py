"""The gdbstub as something that is held, given up to a debugger for a while, and taken back.

QEMU has one gdbstub, for one client.  While it is given up, it listens where it was, in virtual
memory mode as every debugger expects.  Every attempt to use it here raises.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self

from optpolined.addresses import GuestPhysical
from optpolined.qemu.errors import MonitorClosedError, StubBusyError, StubError, StubReleasedError
from optpolined.qemu.gdbstub import GdbStub
from optpolined.qemu.stopnote import StopGuard
from optpolined.qemu.stub_setup import close_stub, close_unused_stub, open_stub

__all__ = ("HeldStub",)

_NOTICE_SECONDS = 1.0
"""How long QEMU may take to notice that a debugger has hung up."""

_RETRY_SECONDS = 0.02


class _Monitor(Protocol):
    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object: ...
    def hmp(self, line: str) -> str: ...
    def status(self) -> str: ...


class HeldStub:
    """The guest's gdbstub, not held at first; :meth:`take` connects.

    Stops, reads and writes are those of :class:`~optpolined.qemu.gdbstub.GdbStub`; while the stub
    is released they raise StubReleasedError.
    """

    def __init__(
        self,
        monitor: _Monitor,
        *,
        own: Path,
        configured: Path | None = None,
        timeout_seconds: float = 5,
        guard: StopGuard | None = None,
    ) -> None:
        """Say where the stub is.

        :param own: Where one is opened if the guest has none; it is closed at the end.
        :param configured: Where one is opened instead, to stay.
        """
        self._monitor = monitor
        self._own = own
        self.path = configured or own
        """Where the stub listens."""
        self._timeout_seconds = timeout_seconds
        self._guard = guard
        self._stub: GdbStub | None = None
        self._was_opened = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_released(self) -> bool:
        """Whether the stub is given up to a debugger, or was never taken."""
        return self._stub is None

    @property
    def in_stop(self) -> bool:
        """Whether a stop is open."""
        return self._stub is not None and self._stub.in_stop

    def take(self) -> None:
        """Connect, unless we are connected; the guest runs afterwards if it ran before.

        :raise StubBusyError: a debugger is connected.
        :raise StubError: the stub cannot be opened, or does not answer.
        :raise MonitorError: QEMU does not answer.
        """
        if self._stub is not None:
            return
        deadline = time.monotonic() + _NOTICE_SECONDS
        while True:
            try:
                self.path = open_stub(self._monitor, self.path)
                break
            except StubBusyError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_RETRY_SECONDS)
        self._was_opened = True
        ran = self._monitor.status() == "running"
        vcpus = self._monitor.execute("query-cpus-fast")
        self._stub = GdbStub.connect(
            self.path,
            timeout_seconds=self._timeout_seconds,
            guard=self._guard,
            vcpus=len(vcpus) if isinstance(vcpus, list) else 1,
        )
        if ran and self._monitor.status() != "running":
            # From 8.1 on, QEMU does not tell a client that connecting has stopped the guest.
            self._monitor.execute("cont")

    def release(self) -> None:
        """Give the stub up, unless it is; it listens at :attr:`path`.

        :raise StubError: the stub failed; it is given up nevertheless.
        """
        if self._stub is not None:
            stub, self._stub = self._stub, None
            stub.hand_over()

    def close(self) -> None:
        """Give the stub up for good.  A stub that we opened is closed, unless a debugger uses it.

        :raise MonitorError: QEMU does not answer.
        """
        if self._stub is None:
            if self._was_opened:
                close_unused_stub(self._monitor, self._own)
        elif self.path == self._own:
            self._stub.close()
            self._stub = None
            with suppress(MonitorClosedError):  # a QEMU that has ended has no stub to close
                close_stub(self._monitor)
        else:
            with suppress(StubError):  # then a later debugger must set its own memory mode
                self.release()

    def stop(self) -> bool:
        """See :meth:`GdbStub.stop`."""
        return self._held().stop()

    def resume(self) -> None:
        """See :meth:`GdbStub.resume`."""
        self._held().resume()

    def read(self, requests: Sequence[tuple[GuestPhysical, int]]) -> list[bytes]:
        """See :meth:`GdbStub.read`."""
        return self._held().read(requests)

    def write(self, writes: Sequence[tuple[GuestPhysical, bytes]]) -> None:
        """See :meth:`GdbStub.write`."""
        self._held().write(writes)

    def drain(self) -> None:
        """See :meth:`GdbStub.drain`; does nothing while the stub is released."""
        if self._stub is not None:
            self._stub.drain()

    def _held(self) -> GdbStub:
        if self._stub is None:
            raise StubReleasedError
        return self._stub
