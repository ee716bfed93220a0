"""The QMP facade against a server that behaves, and against ones that do not."""

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.qemu.errors import (
    MonitorAbsentError,
    MonitorBusyError,
    MonitorClosedError,
    MonitorCommandError,
    MonitorError,
    MonitorPermissionError,
    MonitorProtocolError,
    MonitorTimeoutError,
    QemuError,
)
from optpolined.qemu.monitor import Event, Monitor
from tests.unit.fakes.fake_monitor import GREETING, FakeMonitor
from tests.unit.fakes.faults import Faults

TIMEOUT_SECONDS = 0.4
SLACK_SECONDS = 3.0


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "qmp"]


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < TIMEOUT_SECONDS + SLACK_SECONDS


def connect(path: Path) -> Monitor:
    return Monitor.connect(path, timeout_seconds=TIMEOUT_SECONDS)


def events_of(monitor: Monitor, count: int) -> list[Event]:
    """Wait for ``count`` events."""
    found: list[Event] = []
    deadline = time.monotonic() + SLACK_SECONDS
    while len(found) < count and time.monotonic() < deadline:
        found += monitor.drain_events()
        time.sleep(0.001)
    return found


# A server that behaves


def test_commands_return_what_qemu_returns(path: Path) -> None:
    with FakeMonitor(path, hmp={"info x": "text\r\n"}) as fake, Monitor.connect(path) as monitor:
        assert monitor.path == path
        assert monitor.status() == "running"
        assert monitor.execute("stop") == {}
        assert monitor.status() == "paused"
        assert monitor.hmp("info x") == "text\r\n"
        assert fake.lines == ["info x"]


def test_the_peer_is_the_process_that_listens(path: Path) -> None:
    with FakeMonitor(path), Monitor.connect(path) as monitor:
        assert monitor.peer_pid() == os.getpid()


def test_a_refused_command_carries_class_and_text(path: Path) -> None:
    with FakeMonitor(path), Monitor.connect(path) as monitor:
        with pytest.raises(MonitorCommandError, match="refused nonsense") as caught:
            monitor.execute("nonsense", {"a": 1})
        assert caught.value.error_class == "CommandNotFound"
        assert "not been found" in caught.value.description
        assert monitor.status() == "running"


def test_events_come_in_order_with_data_and_time(path: Path) -> None:
    with FakeMonitor(path) as fake, Monitor.connect(path) as monitor:
        assert monitor.drain_events() == []
        fake.emit("RESET", {"guest": True})
        monitor.execute("stop")
        assert events_of(monitor, 2) == [
            Event("RESET", {"guest": True}, 1_700_000_000.25),
            Event("STOP", {}, 1_700_000_000.25),
        ]
        assert monitor.drain_events() == []


def test_only_the_newest_events_are_kept(path: Path) -> None:
    with FakeMonitor(path) as fake, Monitor.connect(path) as monitor:
        for number in range(1500):
            fake.emit(f"E{number}")
        monitor.status()
        names = [event.name for event in monitor.drain_events()]
        assert names == [f"E{number}" for number in range(1500 - 1024, 1500)]
        assert not monitor._client.events.history


def test_events_of_any_shape_are_taken(path: Path) -> None:
    events = ({"event": 7}, {"event": "A", "data": 3, "timestamp": {"seconds": "x"}})
    with FakeMonitor(path) as fake, Monitor.connect(path) as monitor:
        for event in events:
            fake.say(json.dumps(event).encode() + b"\n")
        assert [event.name for event in events_of(monitor, 2)] == ["7", "A"]
        assert monitor.status() == "running"


def test_the_answer_that_comes_too_late_is_not_taken_for_the_next(path: Path) -> None:
    with FakeMonitor(path, silent=("lost",)) as fake, connect(path) as monitor:
        with in_time(), pytest.raises(MonitorTimeoutError, match="lost"):
            monitor.execute("lost")
        fake.say(b'{"return": {"status": "stale"}, "id": "__qmp#00000"}\n')
        assert monitor.status() == "running"


def test_closing_twice_is_fine_and_calls_fail_afterwards(path: Path) -> None:
    with FakeMonitor(path):
        monitor = Monitor.connect(path)
        monitor.close()
        monitor.close()
        for call in (monitor.status, monitor.peer_pid):
            with pytest.raises(MonitorClosedError):
                call()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4))
@settings(deadline=None, max_examples=10)
def test_answers_are_the_same_however_they_are_cut(sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "qmp"
        with (
            FakeMonitor(path, faults=Faults(sizes=sizes), hmp={"x": "y" * 500}),
            Monitor.connect(path) as monitor,
        ):
            assert monitor.hmp("x") == "y" * 500


# Servers that do not


def test_what_is_no_monitor_is_told_in_one_line(path: Path) -> None:
    with pytest.raises(MonitorAbsentError, match="no such socket"):
        connect(path)
    path.touch()
    with pytest.raises(MonitorAbsentError, match="not a socket"):
        connect(path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(MonitorAbsentError, match="nothing listens"):
            connect(path)
    with pytest.raises(MonitorAbsentError, match="too long"):
        connect(Path("x" * 200))


def test_a_socket_that_may_not_be_opened_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    # Root may open everything, and the tests may run as root.
    monkeypatch.setattr("optpolined.qemu.monitor.connect_unix", denied)
    with pytest.raises(MonitorPermissionError, match="permission denied; run as"):
        connect(path)


def test_a_server_that_does_not_greet_is_busy_with_another_client(path: Path) -> None:
    with (
        FakeMonitor(path, greeting=None),
        in_time(),
        pytest.raises(MonitorBusyError, match="another client"),
    ):
        connect(path)


def test_a_second_client_is_told_that_the_first_holds_the_socket(path: Path) -> None:
    with (
        FakeMonitor(path),
        Monitor.connect(path),
        in_time(),
        pytest.raises(MonitorBusyError, match="another client"),
    ):
        connect(path)


def test_a_full_queue_is_another_client_too(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as waiting:
            waiting.connect(str(path))
            with in_time(), pytest.raises(MonitorBusyError):
                connect(path)


def test_a_server_that_greets_and_then_says_nothing_times_out(path: Path) -> None:
    with (
        FakeMonitor(path, silent=("qmp_capabilities",)),
        in_time(),
        pytest.raises(MonitorTimeoutError),
    ):
        connect(path)


@pytest.mark.parametrize(
    "greeting",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"{}\n",
        b"[]\n",
        b'{"QMP": 7}\n',
        b'{"QMP": {"version": {}, "capabilities": {}}}\n',
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b"x" * (9 << 20),
    ],
)
def test_a_greeting_that_is_not_qmp_is_told(path: Path, greeting: bytes) -> None:
    with (
        FakeMonitor(path, greeting=greeting),
        pytest.raises(MonitorProtocolError, match="QMP"),
    ):
        Monitor.connect(path, timeout_seconds=10)


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\n",
        b"{}\n",
        b"[1]\n",
        b'{"return": 1, "id": []}\n',
        b'{"return": 1, "id": {}}\n',
        b'{"error": 1}\n',
        b'{"error": {"class": 1}, "id": "__qmp#00000"}\n',
        b'{"id": "__qmp#00000"}\n',
        b"[" * 100_000 + b"\n",
        b"\xff\n",
        b'{"return": 0, "id": "__qmp#00000"}\n' * 5,
    ],
)
def test_an_answer_that_is_not_qmp_is_a_named_error(path: Path, answer: bytes) -> None:
    with FakeMonitor(path) as fake, connect(path) as monitor:
        fake.replies["query-status"] = answer
        for _ in range(3):
            with in_time(), pytest.raises(MonitorError):
                monitor.status()


def test_an_answer_of_the_wrong_type_is_a_protocol_error(path: Path) -> None:
    with FakeMonitor(path) as fake, Monitor.connect(path) as monitor:
        fake.status = 7  # type: ignore[assignment]
        with pytest.raises(MonitorProtocolError, match="query-status"):
            monitor.status()
        fake.on_hmp = lambda _line: 7  # type: ignore[assignment,return-value]
        with pytest.raises(MonitorProtocolError, match="info"):
            monitor.hmp("info")


def test_a_server_that_hangs_up_is_told(path: Path) -> None:
    with FakeMonitor(path) as fake, Monitor.connect(path) as monitor:
        fake.hang_up()
        for _ in range(2):
            with in_time(), pytest.raises(MonitorClosedError):
                monitor.status()


def test_a_flood_of_events_does_not_keep_commands_from_timing_out(path: Path) -> None:
    greeting = json.dumps(GREETING).encode() + b"\n"
    flood = b'{"event": "E", "timestamp": {"seconds": 0, "microseconds": 0}}\n'
    with FakeMonitor(path, greeting=greeting) as fake, connect(path) as monitor:
        fake.replies["query-status"] = flood * 20_000
        with in_time(), pytest.raises(MonitorTimeoutError):
            monitor.status()


@given(
    st.one_of(
        st.builds(Faults, hang_up_after=st.integers(0, 400)),
        st.builds(
            Faults,
            garble=st.dictionaries(
                st.integers(0, 400), st.integers(1, 255), min_size=1, max_size=3
            ),
        ),
        st.builds(Faults, silent_after=st.sampled_from([0, 100, 150, 200])),
    )
)
@settings(deadline=None, max_examples=25)
def test_a_broken_stream_ends_in_a_named_error_in_time(faults: Faults) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "qmp"
        began = time.monotonic()
        with (
            FakeMonitor(path, faults=faults),
            contextlib.suppress(QemuError),
            connect(path) as monitor,
        ):
            monitor.status()
            monitor.execute("stop")
        assert time.monotonic() - began < 3 * TIMEOUT_SECONDS + SLACK_SECONDS
