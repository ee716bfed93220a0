"""Tells a service manager how the daemon is, by the protocol of sd_notify(3).

A message is a datagram of NAME=value lines to the socket that ``NOTIFY_SOCKET`` names:

    READY=1                         the guest is attached to, or a reload has ended
    STATUS=running: 7,865 sites...  for `systemctl status`
    WATCHDOG=1                      the reconcile loop makes progress
    EXTEND_TIMEOUT_USEC=60000000    so does the way in, or the way out
    RELOADING=1, STOPPING=1

Ours, for the libraries are worse than these lines: cysystemd brings copies of libsystemd, libgcrypt
and others for a datagram, systemd-python is compiled against libsystemd, systemd-watchdog measures
its intervals by the wall clock and knows neither reloads nor deadlines, sdnotify is from 2017.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Self

from optpolined.api.status import Status

__all__ = ("Notifier", "one_line", "summary")

_log = logging.getLogger(__name__)

_EXTENSION_SECONDS = 60.0
"""On the way in and out, so long without progress is too long."""

_SEND_SECONDS = 5.0


class Notifier:
    """The manager at a socket; without an address nobody is told anything.

    To be used from the thread of the reconcile loop only: a ping says that this one is well.
    """

    def __init__(
        self,
        address: str = "",
        *,
        watchdog_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param watchdog_seconds: How long the manager waits for a ping; ``None``: for ever."""
        self.is_watched = bool(address) and watchdog_seconds is not None
        """Whether a loop that hangs is ended, by a signal."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._clock = clock
        self._interval_seconds = min(watchdog_seconds or _EXTENSION_SECONDS, _EXTENSION_SECONDS) / 2
        self._due = clock()
        self._is_up = False
        self._said = ""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """The manager that ``environment`` names.

        The variables are taken out of it: they are for us, not for processes that we start.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        period = environment.pop("WATCHDOG_USEC", "")
        whose = environment.pop("WATCHDOG_PID", "")
        is_watched = period.isdecimal() and int(period) > 0 and whose in ("", str(os.getpid()))
        return cls(address, watchdog_seconds=int(period) / 1e6 if is_watched else None)

    def alive(self) -> None:
        """Say that there is progress; to be called often, it costs a look at the clock.

        Before :meth:`ready`, and from :meth:`stopping` on, this moves the deadline of the start, or
        of the stop.  It is no ping then: with the first one systemd begins to wait for the next.
        """
        now = self._clock()
        if now < self._due:
            return
        self._due = now + self._interval_seconds
        extension = f"EXTEND_TIMEOUT_USEC={int(_EXTENSION_SECONDS * 1e6)}"
        self._send("WATCHDOG=1" if self._is_up else extension)

    def ready(self) -> None:
        """Say that the start is over."""
        self._is_up = True
        self._send("READY=1")

    def send_status(self, text: str) -> None:
        """Say what the daemon is doing, where that is not what was said last."""
        text = one_line(text)
        if text != self._said:
            self._said = text
            self._send(f"STATUS={text}")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Say that settings are read again, until the block ends."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")
        try:
            yield
        finally:
            self._send("READY=1")

    def stopping(self) -> None:
        """Say that the daemon is on its way out."""
        self._is_up = False
        self._due = self._clock()
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.settimeout(_SEND_SECONDS)
                manager.sendto(message.encode(errors="replace"), self._address)
        except OSError as error:
            _log.warning("the service manager is not told how we are: %s", error)


def one_line(text: str) -> str:
    """``text`` with everything escaped that would not stay on a line, or not be seen on it."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def summary(status: Status) -> str:
    """The status in a line."""
    said = f"{status.phase.value}: {status.eligible:,} sites, {status.promoted:,} promoted"
    if status.coverage is None:
        return said
    return f"{said}, {status.coverage:.0%} of calls direct"
