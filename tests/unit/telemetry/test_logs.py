"""The log: fields for the journal, one line an event, and calm in a storm."""

import io
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logging_journald import JournaldTransport
from rich.console import Console

from optpolined.telemetry.logs import JournalHandler, RateLimitHandler, configure_logging


class Kept(logging.Handler):
    """Keeps its records."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.records: list[logging.LogRecord] = []
        self.is_closed = False

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.lines.append(record.getMessage())

    def close(self) -> None:
        self.is_closed = True
        super().close()


def record(text: str, *values: object, **extra: str) -> logging.LogRecord:
    made = logging.LogRecord("optpolined.test", logging.WARNING, "", 1, text, values, None)
    made.__dict__.update(extra)
    return made


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_event_is_logged_once_and_then_its_number() -> None:
    kept, clock = Kept(), Clock()
    calm = RateLimitHandler(kept, clock=clock, seconds=60)
    for second in range(120):
        clock.now = float(second)
        calm.handle(record("held by %s", f"gdb {second}", site="0x10", reason="foreign_bytes"))
    assert kept.lines == [
        "held by gdb 0",
        "held by gdb 0 (repeated 59 times)",
        "held by gdb 60",
    ]
    calm.close()
    assert kept.lines[-1] == "held by gdb 60 (repeated 59 times)"
    assert kept.is_closed
    assert {(kept.site, kept.reason) for kept in kept.records} == {("0x10", "foreign_bytes")}  # type: ignore[attr-defined]


def test_events_differ_by_site_and_reason_otherwise_by_text() -> None:
    kept = Kept()
    calm = RateLimitHandler(kept, clock=Clock())
    for site in ("0x10", "0x20"):
        for reason in ("foreign_bytes", "unmapped"):
            calm.handle(record("left alone", site=site, reason=reason))
    calm.handle(record("%s", "one"))
    calm.handle(record("%s", "another"))
    assert len(kept.lines) == 6


def test_events_about_ten_thousand_sites_are_a_few_lines() -> None:
    kept, clock = Kept(), Clock()
    calm = RateLimitHandler(kept, clock=clock)
    for site in range(10_000):
        calm.handle(record("%#x left alone", site, site=f"{site:#x}", reason="foreign_bytes"))
    assert len(kept.lines) == 10
    clock.now = 61.0
    calm.handle(record("something else"))
    assert kept.lines[10:] == ["0xa left alone (and 9989 more of this kind)", "something else"]


def test_records_of_level_debug_are_not_limited() -> None:
    kept = Kept()
    calm = RateLimitHandler(kept, clock=Clock())
    for _ in range(30):
        asked_for = record("changed", site="0x10")
        asked_for.levelno = logging.DEBUG
        calm.handle(asked_for)
    assert len(kept.lines) == 30


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.floats(0, 100))))
def test_every_record_is_passed_on_or_counted(
    events: list[tuple[int, int, float]],
) -> None:
    kept, clock = Kept(), Clock()
    calm = RateLimitHandler(kept, clock=clock)
    for kind, site, seconds in events:
        clock.now += seconds
        calm.handle(record(f"kind {kind}", site=f"{site:#x}", reason="r"))
    calm.close()
    counted = 0
    for line in kept.lines:
        _, _, note = line.partition("(")
        words = note.split()
        number = int(words[1]) if words else 0
        counted += {"repeated": number, "and": number + 1}.get(words[0] if words else "", 1)
    assert counted == len(events)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "journal"))
        listener.settimeout(5)
        yield listener


@pytest.fixture
def handler(journal: socket.socket) -> Iterator[JournalHandler]:
    transport = JournaldTransport(journal.getsockname())
    with transport.socket:
        yield JournalHandler(transport.send, "vm1")


def entry(journal: socket.socket) -> dict[str, str]:
    return dict(
        line.partition("=")[::2] for line in journal.recv(1 << 16).decode().splitlines() if line
    )


def test_the_journal_gets_fields(journal: socket.socket, handler: JournalHandler) -> None:
    logger = logging.getLogger("optpolined.test")
    handler.handle(
        logger.makeRecord(
            *(
                "optpolined.test",
                logging.WARNING,
                "/x/patcher.py",
                7,
                "%s left\nalone",
                ("a",),
                None,
            ),
            extra={"site": "0xffffffff81000010", "reason": "foreign_bytes"},
        )
    )
    fields = entry(journal)
    assert fields["MESSAGE"] == "a left\\nalone"
    assert fields["PRIORITY"] == "4"
    assert fields["GUEST"] == "vm1"
    assert fields["SITE"] == "0xffffffff81000010"
    assert fields["REASON"] == "foreign_bytes"
    assert fields["SYSLOG_IDENTIFIER"] == "optpolined"
    handler.handle(record("quiet"))
    fields = entry(journal)
    assert "SITE" not in fields
    assert "REASON" not in fields


def test_a_field_cannot_be_forged_by_what_the_guest_says(
    journal: socket.socket, handler: JournalHandler
) -> None:
    handler.handle(record("x\nGUEST=other", site="y\nPRIORITY=0"))
    fields = entry(journal)
    assert fields["GUEST"] == "vm1"
    assert fields["PRIORITY"] == "4"


def test_a_traceback_is_a_field_of_its_own(journal: socket.socket, handler: JournalHandler) -> None:
    failed = record("it failed")
    try:
        int("no")
    except ValueError:
        failed.exc_info = sys.exc_info()
    handler.handle(failed)
    told = journal.recv(1 << 16)
    assert b"\nTRACEBACK\n" in told
    assert b"ValueError: invalid" in told


def test_elsewhere_an_event_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        configure_logging("vm1", Console(file=io.StringIO()), verbose=False)
        logging.getLogger("optpolined.test").warning("one\ntwo %s", "\x1b[31m")
        logging.getLogger("optpolined.test").debug("not asked for")
    finally:
        root.handlers[:], root.level = before
    assert capsys.readouterr().err == "WARNING optpolined.test: one\\ntwo \\x1b[31m\n"
