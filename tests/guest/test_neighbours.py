"""Other programs change a guest, its text, its modules or its life while it is patched."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest.image.boot import Guest
from guest.image.errors import GuestCommandError
from optpolined.api.status import DaemonPhase
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain
from optpolined.kernel.sites.scan import Site
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.steps import Protocol, Step, StepPhase, steps
from optpolined.qemu.monitor import Monitor
from optpolined.session.session import Session
from tests.guest.command import COMMAND
from tests.guest.harness import (
    PATIENCE_SECONDS,
    bench_calls,
    called_while_learning,
    config_of,
    open_session,
    site_in,
    targets_of,
    wait_bench,
    wait_until,
    write_config,
)
from tests.guest.running import AT_WORK, Running, text_was_put_back

EVENTS = "/sys/kernel/tracing/kprobe_events"
HOT_CALLS = 100


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
        return wait_until(self.hits, "the kprobe fires", lambda hits: hits > before) > before

    def clear(self) -> None:
        self._guest.run(f"echo 0 >/sys/kernel/tracing/events/kprobes/theirs/enable; echo >{EVENTS}")


@pytest.fixture
def busy(guest: Guest) -> Iterator[Guest]:
    """The shared guest with all of optbench at work, whose checks must all have been right."""
    guest.run("echo reset >/proc/optbench; echo rate 100 >/proc/optbench")
    guest.run("echo run all >/proc/optbench")
    wait_bench(guest, ["total"])
    yield guest
    guest.run("echo stop >/proc/optbench")
    assert all(errors == 0 for _, errors in bench_calls(guest).values())
    assert "BUG" not in guest.run("dmesg")


def hot_kernel_site(session: Session) -> Site:
    """Return the site in vfs_write() that is hot while a program is `writing`."""
    eligible = session.survey.inventory.eligible
    called = called_while_learning(
        session,
        [address for address, site in eligible.items() if site.function == "vfs_write"],
        "a site of vfs_write() is hot",
        lambda called: any(calls.total() > HOT_CALLS for calls in called.values()),
    )
    return eligible[max(called, key=lambda site: called[site].total())]


@contextmanager
def writing(guest: Guest) -> Iterator[None]:
    """A program writes through vfs_write all the time."""
    guest.run("(while :; do echo; done >/dev/null) & echo $! >/run/writer")
    try:
        yield
    finally:
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
        session.counters.count()
        wait_until(session.counters.count, "calls are counted")


def test_a_module_goes_and_comes_while_its_sites_and_targets_are_patched(busy: Guest) -> None:
    with open_session(config_of(busy)) as session:
        site = site_in(session, "optbench_call_4_random")
        targets = targets_of(session, site.address, 4)
        session.apply({site.address: Chain(targets)})
        busy.run("rmmod optbench")
        change = session.follow_modules()
        assert change is not None
        assert site.address in change.went
        assert site.address not in session.patcher.observe()
        # Another module may be loaded there, with other instructions.
        assert site.address not in PokeEntries(session.space, session.header).originals()
        busy.run("insmod /lib/modules/optbench.ko")
        busy.run("echo rate 100 >/proc/optbench; echo run all >/proc/optbench")
        again = session.follow_modules()
        assert again is not None
        new = site_in(session, "optbench_call_4_random")
        assert new.address in again.came
        assert session.apply({new.address: LEARNING}).done == 1
        assert len(targets_of(session, new.address, 4)) == 4


def test_our_module_cannot_be_removed_while_it_is_held(busy: Guest) -> None:
    with open_session(config_of(busy)) as session:
        session.apply({site_in(session, "optbench_call_1").address: LEARNING})
        with pytest.raises(GuestCommandError, match=r"Resource temporarily unavailable|in use"):
            busy.run("rmmod optpoline")


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


def test_a_reset_guest_is_attached_to_anew(
    boot: Callable[..., Guest], run: Callable[[Guest], Running]
) -> None:
    guest = boot()
    daemon = run(guest)
    daemon.wait_patched()
    with Monitor.connect(guest.side_qmp) as monitor:
        monitor.execute("system_reset")
    guest.wait_ready()
    daemon.wait_for(lambda status: status.attachments > 1 and status.phase in AT_WORK)
    daemon.wait_patched()
    code, errors = daemon.end()
    assert code == 0, errors
    assert "attaching anew" in errors
    assert text_was_put_back(daemon)


def test_a_guest_that_another_program_paused_stays_paused(
    boot: Callable[..., Guest], run: Callable[[Guest], Running]
) -> None:
    guest = boot()
    daemon = run(guest)
    daemon.wait_patched()
    with Monitor.connect(guest.side_qmp) as monitor:

        def pause() -> DaemonPhase:
            # QEMU cannot tell the daemon of a pause within one of its own stops: it resumes then.
            monitor.execute("stop")
            return daemon.wait_epochs(2).phase

        wait_until(pause, "the guest is paused", lambda phase: phase is DaemonPhase.PAUSED)
        assert daemon.wait_epochs(10).phase is DaemonPhase.PAUSED
        assert monitor.status() == "paused"
        monitor.execute("cont")
        daemon.wait_for(lambda status: status.phase in AT_WORK)
        # The daemon's own stops are short, and pass.
        wait_until(monitor.status, "the guest runs", lambda status: status == "running")
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
    daemon.wait_epochs(2)
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

    def job() -> dict[str, object]:
        jobs = monitor.execute("query-jobs")
        assert isinstance(jobs, list)
        (found,) = jobs
        return dict(found)

    ended = wait_until(job, "a disk is made", lambda job: job["status"] == "concluded")
    assert "error" not in ended, ended
    monitor.execute("job-dismiss", {"id": "create"})


def test_a_guest_that_migrates_away_is_let_go(
    boot: Callable[..., Guest], run: Callable[[Guest], Running]
) -> None:
    guest = boot()
    daemon = run(guest)
    daemon.wait_patched()
    with Monitor.connect(guest.side_qmp) as monitor:
        monitor.execute("migrate", {"uri": "exec:cat >/dev/null"})
        code, errors = daemon.wait_end()
        assert monitor.status() == "postmigrate"
    assert code == 0, errors
    assert "has migrated" in errors


def test_when_qemu_is_killed_one_line_says_so(
    boot: Callable[..., Guest], run: Callable[[Guest], Running]
) -> None:
    guest = boot()
    daemon = run(guest)
    daemon.wait_patched()
    guest.kill()
    code, errors = daemon.wait_end()
    assert code == 1
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
