"""Everybody else who changes a guest, its text, its modules or its life while it is patched."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest.image.boot import Guest
from guest.image.errors import GuestCommandError
from optpolined.api.errors import NoAnswerError
from optpolined.api.status import DaemonPhase, Status
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain
from optpolined.kernel.sites.scan import Site
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.steps import Protocol, Step, StepPhase, steps
from optpolined.qemu.monitor import Monitor
from optpolined.session.session import Session
from optpolined.telemetry.socket_client import read_status
from tests.guest.harness import bench_calls, config_of, open_session, site_in, write_config
from tests.guest.test_command import COMMAND

EVENTS = "/sys/kernel/tracing/kprobe_events"
PATIENCE_SECONDS = 90


class Probe:
    """A kprobe event on a site; the guest counts its hits."""

    def __init__(self, guest: Guest, session: Session, site: Site) -> None:
        self._guest = guest
        function = session.survey.symbols.function(site.address)
        assert function is not None
        self._place = f"{site.function}+{site.address - function.start}"

    def set(self) -> None:
        self._guest.run(
            "mount | grep -q tracefs || mount -t tracefs tracefs /sys/kernel/tracing;"
            f"echo 'p:theirs {self._place}' >{EVENTS} &&"
            "echo 1 >/sys/kernel/tracing/events/kprobes/theirs/enable"
        )

    def hits(self) -> int:
        line = self._guest.run("cat /sys/kernel/tracing/kprobe_profile").split()
        return int(line[1])

    def fires(self) -> bool:
        before = self.hits()
        time.sleep(0.5)
        return self.hits() > before

    def clear(self) -> None:
        self._guest.run(f"echo 0 >/sys/kernel/tracing/events/kprobes/theirs/enable; echo >{EVENTS}")


@pytest.fixture
def busy(guest: Guest) -> Iterator[Guest]:
    """The shared guest with all of optbench at work, whose checks must all have been right."""
    guest.run("echo reset >/proc/optbench; echo rate 100 >/proc/optbench")
    guest.run("echo run all >/proc/optbench")
    time.sleep(1)
    yield guest
    guest.run("echo stop >/proc/optbench")
    assert all(errors == 0 for _, errors in bench_calls(guest).values())
    assert "BUG" not in guest.run("dmesg")


def hot_kernel_site(session: Session) -> Site:
    """The site in the kernel's own vfs_write() that somebody who is `writing` goes through."""
    eligible = session.survey.inventory.eligible
    sites = [address for address, site in eligible.items() if site.function == "vfs_write"]
    session.apply(dict.fromkeys(sites, LEARNING))
    time.sleep(0.5)
    counts = session.count()
    session.apply(dict.fromkeys(sites, ORIGINAL))
    return eligible[max(counts, key=lambda site: sum(counts[site].calls.values()))]


@contextmanager
def writing(guest: Guest) -> Iterator[None]:
    """Somebody writes through vfs_write all the time."""
    guest.run("(while :; do echo; done >/dev/null) & echo $! >/run/writer")
    yield
    guest.run("kill $(cat /run/writer)")


def test_a_kprobe_that_was_there_first_keeps_firing_and_its_site_is_left_alone(
    busy: Guest,
) -> None:
    with open_session(config_of(busy)) as session, writing(busy):
        site = hot_kernel_site(session)
        probe = Probe(busy, session, site)
        probe.set()
        report = session.apply({site.address: LEARNING})
        assert report.sites == {site.address: "foreign_breakpoint"}
        assert probe.fires()
        probe.clear()
        assert session.apply({site.address: LEARNING}).done == 1


def test_a_kprobe_on_a_promoted_site_keeps_firing_and_its_block_is_kept(busy: Guest) -> None:
    with open_session(config_of(busy)) as session, writing(busy):
        site = hot_kernel_site(session)
        session.apply({site.address: LEARNING})
        probe = Probe(busy, session, site)
        probe.set()
        assert session.patcher.observe()[site.address] is None
        used = session.arena.usage().used
        assert used > 0
        assert probe.fires()
        assert session.apply({site.address: ORIGINAL}).sites == {site.address: "foreign_breakpoint"}
        session.patcher.observe()
        assert session.arena.usage().used == used
        assert probe.fires()
        probe.clear()
        assert session.patcher.observe()[site.address] == LEARNING


def test_a_kprobe_is_refused_while_our_breakpoint_stands(busy: Guest) -> None:
    with open_session(config_of(busy)) as session, writing(busy):
        site = hot_kernel_site(session)
        probe = Probe(busy, session, site)
        change = session.patcher.change(site.address, LEARNING, session.space)
        for step in steps([change], Protocol.BREAKPOINT):
            if not isinstance(step, Step):
                session.transport.sync()
                continue
            session.transport.write([item.write for item in step.writes])
            if step.phase is StepPhase.BREAK:
                with pytest.raises(GuestCommandError, match="Invalid"):
                    probe.set()
        assert session.patcher.observe()[site.address] == LEARNING


def test_cpus_go_and_come_while_everything_is_patched(busy: Guest) -> None:
    online = "/sys/devices/system/cpu/cpu1/online"
    with open_session(config_of(busy)) as session:
        session.apply(dict.fromkeys(session.survey.inventory.eligible, LEARNING))
        for _ in range(3):
            busy.run(f"echo 0 >{online}")
            busy.run(f"echo 1 >{online}")
        assert session.count()


def test_a_module_goes_and_comes_while_its_sites_and_targets_are_patched(busy: Guest) -> None:
    with open_session(config_of(busy)) as session:
        site = site_in(session, "optbench_call_4_random")
        session.apply({site.address: LEARNING})
        time.sleep(0.5)
        targets = sorted(session.count()[site.address].calls)[:4]
        session.apply({site.address: Chain(tuple(targets))})
        busy.run("rmmod optbench")
        change = session.follow_modules()
        assert change is not None
        assert site.address in change.went
        assert site.address not in session.patcher.observe()
        # Another module may come to stand there, with other instructions.
        assert site.address not in PokeEntries(session.space, session.header).originals()
        busy.run("insmod /lib/modules/optbench.ko")
        busy.run("echo rate 100 >/proc/optbench; echo run all >/proc/optbench")
        again = session.follow_modules()
        assert again is not None
        new = site_in(session, "optbench_call_4_random")
        assert new.address in again.came
        assert session.apply({new.address: LEARNING}).done == 1
        time.sleep(0.5)
        assert len(session.count()[new.address].calls) == 4


def test_our_module_cannot_be_removed_while_it_is_held(busy: Guest) -> None:
    with open_session(config_of(busy)) as session:
        session.apply({site_in(session, "optbench_call_1").address: LEARNING})
        with pytest.raises(GuestCommandError, match=r"Resource temporarily unavailable|in use"):
            busy.run("rmmod optpoline")


class Running:
    """The daemon as a process, with what it prints."""

    def __init__(self, guest: Guest, directory: Path, config: str = "") -> None:
        write_config(guest, directory, f"[learning]\nepoch_milliseconds = 200\n{config}")
        self.report_file = directory / "report.json"
        self._status = guest.directory / "run" / "test.status"
        self.process = subprocess.Popen(
            [
                *(COMMAND, "--guest", "test", "--config-dir", str(directory)),
                *("--report", str(self.report_file)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, wanted: Callable[[Status], bool]) -> None:
        """Wait until the daemon's status is as wanted."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.communicate()[1]
            try:
                if wanted(read_status(self._status)):
                    return
            except NoAnswerError:
                pass  # not yet attached
            time.sleep(0.1)
        raise AssertionError("the daemon does not get there")

    def wait_patched(self) -> None:
        """Wait until this attachment has a thousand blocks, of at least 32 bytes each."""
        self.wait_for(lambda status: status.arena.used_bytes > 32_000)

    def end(self) -> tuple[int, str]:
        """Ask it to leave; answer its exit code and what it said."""
        self.process.terminate()
        _, errors = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, errors

    def kill(self) -> None:
        """End it at once, where it has not ended."""
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[Guest], Running]]:
    """Start the daemon on a guest; it does not outlive the test."""
    started: list[Running] = []

    def start(guest: Guest) -> Running:
        started.append(Running(guest, tmp_path))
        return started[-1]

    yield start
    for running in started:
        running.kill()


def text_was_put_back(running: Running) -> bool:
    report = json.loads(running.report_file.read_text())
    return bool(report["text_identical_after_detach"])


def test_a_reset_guest_is_attached_to_anew(
    boot: Callable[..., Guest], run: Callable[[Guest], Running]
) -> None:
    guest = boot()
    daemon = run(guest)
    daemon.wait_patched()
    with Monitor.connect(guest.side_qmp) as monitor:
        monitor.execute("system_reset")
    guest.wait_ready()
    daemon.wait_for(lambda status: status.phase in (DaemonPhase.LEARNING, DaemonPhase.RUNNING))
    daemon.wait_patched()
    code, errors = daemon.end()
    assert code == 0, errors
    assert "attaching anew" in errors
    assert text_was_put_back(daemon)


def test_a_guest_that_somebody_paused_stays_paused(
    boot: Callable[..., Guest], run: Callable[[Guest], Running]
) -> None:
    guest = boot()
    daemon = run(guest)
    daemon.wait_patched()
    with Monitor.connect(guest.side_qmp) as monitor:
        for _ in range(50):  # one that lands within a stop of ours is lost: QEMU cannot tell
            monitor.execute("stop")
            time.sleep(0.3)
            if monitor.status() == "paused":
                break
        daemon.wait_for(lambda status: status.phase is DaemonPhase.PAUSED)
        time.sleep(1)
        assert monitor.status() == "paused"
        monitor.execute("cont")
        daemon.wait_for(lambda status: status.phase in (DaemonPhase.LEARNING, DaemonPhase.RUNNING))
        assert monitor.status() == "running"
    code, errors = daemon.end()
    assert code == 0, errors
    assert text_was_put_back(daemon)


def test_a_snapshot_that_is_loaded_is_noticed_and_put_back(
    boot: Callable[..., Guest], run: Callable[[Guest], Running]
) -> None:
    guest = boot()
    daemon = run(guest)
    daemon.wait_patched()
    with Monitor.connect(guest.side_qmp, timeout_seconds=60) as monitor:
        add_snapshot_disk(monitor, guest.directory / "snapshots.qcow2")
        assert monitor.hmp("savevm then") == ""
        daemon.wait_for(lambda status: status.pokes > 10_000)
        assert monitor.hmp("loadvm then") == ""
    daemon.wait_patched()
    code, errors = daemon.end()
    assert code == 0, errors
    assert text_was_put_back(daemon)
    assert "BUG" not in guest.run("dmesg")


def add_snapshot_disk(monitor: Monitor, path: Path) -> None:
    """Give the guest's QEMU a place for snapshots."""
    size = 4 << 30
    options = {"driver": "file", "filename": str(path), "size": 0}
    _create(monitor, options)
    monitor.execute(
        "blockdev-add", {"driver": "file", "node-name": "snapfile", "filename": str(path)}
    )
    _create(monitor, {"driver": "qcow2", "file": "snapfile", "size": size})
    monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": "snap", "file": "snapfile"})


def _create(monitor: Monitor, options: dict[str, object]) -> None:
    monitor.execute("blockdev-create", {"job-id": "create", "options": options})
    while True:
        jobs = monitor.execute("query-jobs")
        assert isinstance(jobs, list)
        if jobs[0]["status"] == "concluded":
            assert "error" not in jobs[0], jobs
            monitor.execute("job-dismiss", {"id": "create"})
            return
        time.sleep(0.05)


def test_a_guest_that_migrates_away_is_let_go(
    boot: Callable[..., Guest], run: Callable[[Guest], Running]
) -> None:
    guest = boot()
    daemon = run(guest)
    daemon.wait_patched()
    with Monitor.connect(guest.side_qmp) as monitor:
        monitor.execute("migrate", {"uri": "exec:cat >/dev/null"})
        _, errors = daemon.process.communicate(timeout=PATIENCE_SECONDS)
        assert monitor.status() == "postmigrate"
    assert daemon.process.returncode == 0, errors
    assert "has migrated" in errors


def test_when_qemu_is_killed_one_line_says_so(
    boot: Callable[..., Guest], run: Callable[[Guest], Running]
) -> None:
    guest = boot()
    daemon = run(guest)
    daemon.wait_patched()
    guest.kill()
    _, errors = daemon.process.communicate(timeout=PATIENCE_SECONDS)
    assert daemon.process.returncode == 1
    assert len([line for line in errors.splitlines() if line.startswith("optpolined:")]) == 1
    assert "Traceback" not in errors


def test_a_locked_down_guest_is_refused(boot: Callable[..., Guest], tmp_path: Path) -> None:
    guest = boot()
    guest.run("mount -t securityfs none /sys/kernel/security")
    guest.run("echo integrity >/sys/kernel/security/lockdown")
    write_config(guest, tmp_path)
    result = subprocess.run(
        [COMMAND, "--guest", "test", "--config-dir", tmp_path],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert result.returncode == 2
    assert "guarded by lockdown" in result.stderr
