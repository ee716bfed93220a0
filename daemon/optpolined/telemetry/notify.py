"""Sends the state of the daemon to a service manager, by the protocol of sd_notify(3).

A message is a datagram of NAME=value lines to the socket that ``NOTIFY_SOCKET`` names:

    READY=1                         the guest is attached to, or a reload has ended
    STATUS=running: 7,865 sites...  for `systemctl status`
    WATCHDOG=1                      the reconcile loop makes progress
    EXTEND_TIMEOUT_USEC=60000000    the start or the stop makes progress
    RELOADING=1, STOPPING=1

No library does better than these lines.  cysystemd bundles copies of libsystemd, libgcrypt and
others for one datagram.  systemd-python is compiled against libsystemd.  systemd-watchdog measures
its intervals by the wall clock, and knows neither reloads nor deadlines.  sdnotify is from 2017.
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
"""A start or a stop that makes no progress for this long has failed."""

_SEND_SECONDS = 5.0


class Notifier:
    """The service manager at a socket; without an address nothing is sent.

    Only the thread of the reconcile loop may use it, because a ping says that this thread works.
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
        """Whether the manager ends a loop that hangs, by a signal."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._clock = clock
        self._interval_seconds = min(watchdog_seconds or _EXTENSION_SECONDS, _EXTENSION_SECONDS) / 2
        self._due = clock()
        self._is_up = False
        self._said = ""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """Return the manager that ``environment`` names.

        The variables are removed from it, because they are not for the processes that we start.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        period = environment.pop("WATCHDOG_USEC", "")
        whose = environment.pop("WATCHDOG_PID", "")
        is_watched = period.isdecimal() and int(period) > 0 and whose in ("", str(os.getpid()))
        return cls(address, watchdog_seconds=int(period) / 1e6 if is_watched else None)

    def alive(self) -> None:
        """Report progress.  Callers may call it often: most calls only read the clock.

        Before :meth:`ready`, and after :meth:`stopping`, it extends the deadline of the start or of
        the stop instead of a ping: after its first ping systemd expects the next one.
        """
        now = self._clock()
        if now < self._due:
            return
        self._due = now + self._interval_seconds
        extension = f"EXTEND_TIMEOUT_USEC={int(_EXTENSION_SECONDS * 1e6)}"
        self._send("WATCHDOG=1" if self._is_up else extension)

    def ready(self) -> None:
        """Report that the start is complete."""
        self._is_up = True
        self._send("READY=1")

    def send_status(self, text: str) -> None:
        """Send a line about what the daemon does, unless it was sent last."""
        text = one_line(text)
        if text != self._said:
            self._said = text
            self._send(f"STATUS={text}")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Report a reload of the settings for as long as the block runs."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")
        try:
            yield
        finally:
            self._send("READY=1")

    def stopping(self) -> None:
        """Report that the daemon stops."""
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
            _log.warning(
                "the service manager cannot be reached, and may restart the daemon: %s", error
            )


def one_line(text: str) -> str:
    """Return ``text`` with an escape for each character that is not printable."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def summary(status: Status) -> str:
    """Return the status in one line."""
    said = f"{status.phase.value}: {status.eligible:,} sites, {status.promoted:,} promoted"
    if status.coverage is None:
        return said
    return f"{said}, {status.coverage:.0%} of calls direct"
