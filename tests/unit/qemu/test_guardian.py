"""The guardian resumes what a dead daemon left stopped, and nothing else."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optpolined.qemu import guardian
from optpolined.qemu.errors import GuardianError
from optpolined.qemu.guardian import Guardian
from optpolined.qemu.stopnote import StopNote
from tests.unit.fakes.fake_monitor import FakeMonitor
from tests.unit.fakes.faults import Faults

SLACK_SECONDS = 5.0

ROOT = Path(guardian.__file__).parents[2]

# A daemon: holds QMP if told to, starts a guardian, sets its flag if told to, and waits.
DAEMON = """
import sys, socket, time
from pathlib import Path
sys.path.append(sys.argv[1])
from optpolined.qemu.guardian import Guardian
from optpolined.qemu.stopnote import StopNote
if "holds-qmp" in sys.argv:
    qmp = socket.socket(socket.AF_UNIX)
    qmp.connect(sys.argv[2])
guardian = Guardian.start(Path(sys.argv[2]), StopNote.create(Path(sys.argv[2] + ".stop"), 1))
if "stopping" in sys.argv:
    guardian.stopping()
if "resumed" in sys.argv:
    guardian.resumed()
print(guardian.pid, flush=True)
time.sleep(60)
"""


def note_at(path: Path) -> Path:
    return path.with_name(f"{path.name}.stop")


def start(path: Path) -> Guardian:
    return Guardian.start(path, StopNote.create(note_at(path), 1))


@contextlib.contextmanager
def daemon(path: Path, *words: str) -> Iterator[tuple[Callable[[], None], int]]:
    """A function that kills the daemon as kill -9 does, and its guardian's pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(ROOT), str(path), *words], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        with process.stdout as output:
            pid = int(output.readline())
        yield process.kill, pid
    finally:
        process.kill()
        process.wait()
        assert ends(pid)


def ends(pid: int) -> bool:
    """Wait for a process that is not our child to end."""
    return soon(lambda: "State:\tZ" in _status(pid) or not _status(pid))


def _status(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/status").read_text()
    return ""


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SLACK_SECONDS
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.001)
    return met


def test_a_guest_that_a_dead_daemon_stopped_runs_again_at_once(path: Path) -> None:
    with FakeMonitor(path, status="paused") as fake, daemon(path, "stopping") as (kill, _):
        began = time.monotonic()
        kill()
        assert soon(lambda: fake.status == "running")
        # 0.1 s on a machine that has time for it.
        assert time.monotonic() - began < 1.0


def test_a_daemon_that_dies_before_its_guardian_is_ready_is_no_excuse(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    note = StopNote.create(note_at(path), 1)
    note.set()
    end, pipe = os.pipe2(os.O_CLOEXEC)
    unread, output = os.pipe2(os.O_CLOEXEC)
    for its in (pipe, unread):
        os.close(its)  # as the kernel does for a daemon that is dead
    arguments = [str(ROOT), str(path), str(note.descriptor), str(end)]
    with FakeMonitor(path, status="paused") as fake:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", guardian._PROGRAM, *arguments],
            stdout=output,
            pass_fds=(note.descriptor, end),
            timeout=SLACK_SECONDS,
            check=False,
        )
        assert fake.status == "running"
    assert done.returncode == 0
    assert capfd.readouterr().err == ""
    assert not note.is_set
    assert note.tells_of_rescue
    for ours in (end, output):
        os.close(ours)
    note.close()


def test_the_note_tells_of_the_rescue_when_the_guest_runs_again(path: Path) -> None:
    with FakeMonitor(path, status="paused"), daemon(path, "stopping") as (kill, pid):
        assert note_at(path).read_bytes() == b"\x011"
        kill()
        assert ends(pid)
        assert note_at(path).read_bytes() == b"\x021"


def test_a_guardian_that_is_killed_too_leaves_the_note(path: Path) -> None:
    with daemon(path, "stopping") as (kill, pid):
        os.kill(pid, signal.SIGKILL)
        kill()
        assert ends(pid)
    assert note_at(path).read_bytes() == b"\x011"


def test_it_waits_for_the_daemons_place_at_the_monitor(path: Path) -> None:
    with (
        FakeMonitor(path, status="paused") as fake,
        daemon(path, "stopping", "holds-qmp") as (kill, _),
    ):
        kill()
        assert soon(lambda: fake.status == "running")


def test_a_guest_that_was_not_stopped_by_the_daemon_stays_paused(path: Path) -> None:
    with FakeMonitor(path, status="paused") as fake:
        for words in ((), ("stopping", "resumed")):
            with daemon(path, *words) as (kill, pid):
                kill()
                assert ends(pid)
        assert fake.commands == []
        assert fake.clients == 0


@pytest.mark.parametrize("status", ["running", "shutdown", "internal-error", "inmigrate"])
def test_a_guest_that_is_not_paused_is_not_resumed(path: Path, status: str) -> None:
    with FakeMonitor(path, status=status) as fake, daemon(path, "stopping") as (kill, pid):
        kill()
        assert ends(pid)
        assert "query-status" in fake.commands
        assert "cont" not in fake.commands


def test_it_waits_until_the_daemons_gdb_connection_is_gone(path: Path) -> None:
    with FakeMonitor(path, status="paused") as fake, daemon(path, "stopping") as (kill, _):
        fake.chardevs = [{"label": "gdb", "filename": "unix:/x,server=on"}]
        kill()
        assert soon(lambda: fake.commands.count("query-chardev") > 3)
        assert "cont" not in fake.commands
        fake.chardevs = [{"label": "gdb", "filename": "disconnected:unix:/x,server=on"}]
        assert soon(lambda: fake.status == "running")


def test_signals_of_terminal_and_service_manager_do_not_end_it(path: Path) -> None:
    with FakeMonitor(path, status="paused") as fake, daemon(path, "stopping") as (kill, pid):
        assert os.getsid(pid) == pid
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        kill()
        assert soon(lambda: fake.status == "running")


def test_it_is_small_and_needs_the_standard_library_only(path: Path) -> None:
    with start(path) as watcher:
        assert "site-packages" not in Path(f"/proc/{watcher.pid}/maps").read_text()
        anonymous = _status(watcher.pid).split("RssAnon:")[1].split()
        assert int(anonymous[0]) < 12_000, "KiB"


def test_closing_ends_it(path: Path) -> None:
    watcher = start(path)
    assert watcher.is_alive()
    watcher.stopping()
    watcher.resumed()
    watcher.close()
    watcher.close()
    assert not watcher.is_alive()
    assert not note_at(path).exists()


def test_closing_in_a_stop_resumes_the_guest(path: Path) -> None:
    with FakeMonitor(path, status="paused") as fake:
        watcher = start(path)
        watcher.stopping()
        watcher.close()
        assert fake.status == "running"


def test_a_guardian_that_died_is_started_again_and_reads_the_same_note(path: Path) -> None:
    with FakeMonitor(path, status="paused") as fake:
        watcher = start(path)
        first = watcher.pid
        assert not watcher.restart_if_dead()
        watcher.stopping()
        os.kill(first, signal.SIGKILL)
        assert soon(lambda: not watcher.is_alive())
        assert watcher.restart_if_dead()
        assert watcher.pid != first
        assert watcher.is_alive()
        watcher.close()
        assert fake.status == "running"


def test_a_guardian_that_cannot_be_started_again_is_tried_the_next_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(path) as watcher:
        os.kill(watcher.pid, signal.SIGKILL)
        assert soon(lambda: not watcher.is_alive())
        with monkeypatch.context() as broken:
            broken.setattr(sys, "executable", "/nonexistent")
            with pytest.raises(GuardianError, match="cannot be started"):
                watcher.restart_if_dead()
        assert note_at(path).exists()
        assert watcher.restart_if_dead()


def test_where_qemu_has_ended_there_is_nothing_to_resume(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
    with daemon(path, "stopping") as (kill, pid):
        kill()
        assert ends(pid)
    assert capfd.readouterr().err == ""


def test_a_guardian_that_does_not_start_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guardian, "_PROGRAM", "raise SystemExit(3)")
    with pytest.raises(GuardianError, match="did not start"):
        start(path)
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    with pytest.raises(GuardianError, match="cannot be started"):
        start(path)
    assert not note_at(path).exists()


@pytest.mark.parametrize(
    "fake_options",
    [
        {"greeting": None},
        {"greeting": b"[1]\n"},
        {"greeting": b"x" * 100},
        {"silent": ("query-status",)},
        {"faults": Faults(hang_up_after=150)},
        {"faults": Faults(garble={30: 7})},
    ],
)
def test_a_monitor_that_does_not_work_is_given_up(
    path: Path, fake_options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guardian, "_GIVE_UP_SECONDS", 0.3)
    began = time.monotonic()
    with FakeMonitor(path, **fake_options):  # type: ignore[arg-type]
        assert not guardian._resume(str(path))
    assert time.monotonic() - began < SLACK_SECONDS


def test_a_monitor_that_is_broken_at_first_is_tried_again(path: Path) -> None:
    with FakeMonitor(path, status="paused", greeting=b"[1]\n") as fake:
        fake.status = "paused"

        def heal() -> None:
            fake._greeting = b'{"QMP": {}}\n'

        timer = threading.Timer(0.1, heal)
        timer.start()
        assert guardian._resume(str(path))
        timer.join()
        assert fake.status == "running"
