"""The log: to the journal with fields, to a terminal, or as plain lines.

An event is one line, even where a name from the guest holds a newline.  A call that is about a
site, or that has a reason, passes ``extra={"site": f"{address:#x}", "reason": "foreign_bytes"}``.
In the journal these are the fields SITE and REASON, beside GUEST:

    journalctl GUEST=vm1 REASON=foreign_breakpoint

Events that repeat are counted instead of logged (:class:`RateLimitHandler`).
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from logging_journald import JournaldTransport, check_journal_stream
from rich.console import Console
from rich.logging import RichHandler

from optpolined.telemetry.notify import one_line

__all__ = ("JournalHandler", "RateLimitHandler", "configure_logging", "goes_to_journal")

_INTERVAL_SECONDS = 60.0
_OF_A_KIND_MAX = 10
"""Lines of one logging call, about different sites, within the interval."""

_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""The levels of syslog(3): err, warning, info; below them debug."""


def configure_logging(guest: str, console: Console, *, verbose: bool) -> None:
    """Send the log of this process to its standard error, or to the journal behind it."""
    handler = RateLimitHandler(_handler(guest, console))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("optpolined").setLevel(logging.DEBUG if verbose else logging.INFO)


def goes_to_journal() -> bool:
    """Return whether stderr is connected to the journal: JOURNAL_STREAM in systemd.exec(5)."""
    return bool(check_journal_stream())


def _handler(guest: str, console: Console) -> logging.Handler:
    if goes_to_journal():
        return JournalHandler(JournaldTransport().send, guest)
    if console.is_terminal:
        return RichHandler(console=console, show_path=False, markup=False)
    plain = logging.StreamHandler()
    plain.setFormatter(_OneLine("%(levelname)s %(name)s: %(message)s"))
    return plain


class _OneLine(logging.Formatter):
    """Escapes characters that would break the line; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        return one_line(super().formatMessage(record))


class JournalHandler(logging.Handler):
    """Sends each record as fields; systemd.journal-fields(7) describes most of them."""

    def __init__(self, send: Callable[[list[tuple[str, str]]], None], guest: str) -> None:
        """:param send: Sends the fields of one entry by the native protocol of the journal."""
        super().__init__()
        self._send = send
        self._guest = guest

    def emit(self, record: logging.LogRecord) -> None:
        """Send one entry."""
        try:
            self._send(self._fields(record))
        except Exception:  # noqa: BLE001  as every handler of logging does
            self.handleError(record)

    def _fields(self, record: logging.LogRecord) -> list[tuple[str, str]]:
        fields = [
            ("MESSAGE", one_line(record.getMessage())),
            ("PRIORITY", str(_priority(record.levelno))),
            ("SYSLOG_IDENTIFIER", "optpolined"),
            ("SYSLOG_PID", str(os.getpid())),
            ("LOGGER", record.name),
            ("CODE_FILE", record.pathname),
            ("CODE_LINE", str(record.lineno)),
            ("CODE_FUNC", record.funcName or ""),
            ("GUEST", self._guest),
        ]
        subject = _subject(record)
        names = ("SITE", "REASON")
        fields += [(name, one_line(of)) for name, of in zip(names, subject, strict=True) if of]
        if record.exc_info:
            fields.append(("TRACEBACK", logging.Formatter().formatException(record.exc_info)))
        return fields


def _priority(level: int) -> int:
    return next((priority for least, priority in _PRIORITIES if level >= least), 7)


def _subject(record: logging.LogRecord) -> tuple[str, str]:
    """Return the site and the reason that the call passed; empty where it passed none."""
    return str(getattr(record, "site", "")), str(getattr(record, "reason", ""))


@dataclass(slots=True)
class _Repeated:
    """An event, and how often it was repeated."""

    record: logging.LogRecord
    again: int = 0


@dataclass(slots=True)
class _CallSite:
    """The events of one logging call within the interval: shown ones, and those over the limit."""

    until: float
    shown: dict[tuple[str, ...], _Repeated] = field(default_factory=dict)
    others: _Repeated | None = None


class RateLimitHandler(logging.Handler):
    """Passes on each record once a minute, and at most ten records of one logging call.

    Two records of one call are the same where they are about the same site and reason.  Without
    these, they are the same where their text is.  After the minute, the next record, or the end of
    the program, logs how many were held back.  Records of level debug are not limited.
    """

    def __init__(
        self,
        inner: logging.Handler,
        *,
        clock: Callable[[], float] = time.monotonic,
        seconds: float = _INTERVAL_SECONDS,
    ) -> None:
        """Pass records on to ``inner``, which is closed with this handler."""
        super().__init__()
        self._inner = inner
        self._clock = clock
        self._seconds = seconds
        self._call_sites: dict[tuple[str, str], _CallSite] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Pass ``record`` on, or count it."""
        if record.levelno <= logging.DEBUG:
            self._inner.handle(record)
            return
        now = self._clock()
        self._sum_up(now)
        kind = self._call_sites.setdefault(
            (record.name, str(record.msg)), _CallSite(now + self._seconds)
        )
        subject = _subject(record)
        same = subject if any(subject) else (record.getMessage(),)
        if same in kind.shown:
            kind.shown[same].again += 1
        elif len(kind.shown) < _OF_A_KIND_MAX:
            kind.shown[same] = _Repeated(record)
            self._inner.handle(record)
        elif kind.others is None:
            kind.others = _Repeated(record)
        else:
            kind.others.again += 1

    def close(self) -> None:
        """Log how many records were held back."""
        self._sum_up(float("inf"))
        self._inner.close()
        super().close()

    def _sum_up(self, now: float) -> None:
        """Log how many records were held back in the intervals that have ended."""
        for call, kind in list(self._call_sites.items()):
            if kind.until > now:
                continue
            del self._call_sites[call]
            for heard in kind.shown.values():
                if heard.again:
                    self._inner.handle(_with_note(heard.record, f"repeated {heard.again} times"))
            if kind.others is not None:
                of_them = f"and {kind.others.again} more of this kind"
                self._inner.handle(_with_note(kind.others.record, of_them))


def _with_note(record: logging.LogRecord, note: str) -> logging.LogRecord:
    text = {"msg": f"{record.getMessage()} ({note})", "args": ()}
    return logging.makeLogRecord(record.__dict__ | text)
