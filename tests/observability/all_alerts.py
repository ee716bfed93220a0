"""Each alert, fired by causing its condition for real: `make test-observability`.

The alerts of test_prometheus_live.py are not repeated.  lens.py shortens the durations in the
rules.  The tests build on each other, in this order.
"""

import os
import signal
import time

from optpolined.api.requests import ReleaseStub, Revert, TakeStub, Thaw
from optpolined.api.status import DaemonPhase, Status
from optpolined.config import GuestConfig, QemuConfig
from optpolined.qemu.memory import ram_ranges
from optpolined.qemu.monitor import Monitor
from optpolined.session.link import connect
from tests.guest.harness import load_state
from tests.guest.test_degraded import BUSY, with_arena
from tests.guest.test_hostile_guest import Liar
from tests.observability.conftest import Scene
from tests.observability.daemon import GUEST

PATIENT = "answer_timeout_seconds = 60\n"
"""A line of [qemu], the section with which each configuration begins."""
FAST = "[learning]\nepoch_milliseconds = 200\n"
GREEDY = """
[learning]
epoch_milliseconds = 50
[poke]
stop_budget_microseconds = 100
"""
FEW_SITES = f"""
[policy]
mode = "opt-in"
include = {list(BUSY)}
"""
LIES = 4


def at_work(status: Status) -> bool:
    return status.phase is DaemonPhase.RUNNING and len(status.hottest) > 10


def test_stops_over_the_budget_and_a_loop_that_never_rests(scene: Scene) -> None:
    """A stop budget that no QEMU keeps, and epochs that are too short for 8,000 sites."""
    scene.daemon.start(GREEDY)
    for alert in ("OptpolinedStopsLong", "OptpolinedLoopSlow"):
        assert scene.prometheus.wait_fires(alert)["labels"]["guest"] == GUEST


def test_a_daemon_that_dies_in_a_stop(scene: Scene) -> None:
    with Monitor.connect(scene.guest.side_qmp) as monitor:
        scene.daemon.kill_in_a_stop(lambda: monitor.status() == "paused")
        scene.prometheus.wait("is without the daemon", lambda: monitor.status() == "running")
    scene.daemon.start(PATIENT + FAST)
    scene.prometheus.wait_fires("OptpolinedRecovered")
    assert scene.daemon.status().rescues == 1


def test_what_a_held_daemon_cannot_follow(scene: Scene) -> None:
    """A debugger has the gdbstub while the guest begins to call other functions."""
    command(scene, "stop", "phase 0", "rate 200", "run call_16_phase", "run tail_16_phase")
    scene.daemon.wait(lambda _: len(scene.daemon.sites("optbench:*_16_phase", "promoted")) == 2)
    scene.daemon.ask(ReleaseStub())
    command(scene, "phase 5")
    alert = scene.prometheus.wait_fires("OptpolinedMissesHigh")
    assert alert["labels"]["guest"] == GUEST
    alert = scene.prometheus.wait_fires("OptpolinedHeld", 90)
    assert alert["labels"]["phase"] == "released"
    scene.daemon.ask(TakeStub())
    command(scene, "stop", "phase auto", "rate 1", "run all")


def test_a_guest_that_somebody_paused(scene: Scene) -> None:
    with Monitor.connect(scene.guest.side_qmp) as monitor:
        while scene.daemon.status().phase is not DaemonPhase.PAUSED:
            monitor.execute("stop")  # a stop that lands within a stop of the daemon is lost
            time.sleep(1)
        alert = scene.prometheus.wait_fires("OptpolinedNotManaging")
        monitor.execute("cont")
    assert "it has been paused." in alert["annotations"]["description"]
    scene.daemon.wait(at_work)


def test_a_qemu_that_does_not_answer(scene: Scene) -> None:
    """The guest's clock goes on: its workers rest meanwhile, or they would seem to be stuck."""
    scene.guest.run("killall optload; sleep 1")
    assert load_state(scene.guest)["errors"] == 0, scene.guest.run("cat /run/optload")
    os.kill(scene.guest.pid, signal.SIGSTOP)
    try:
        alert = scene.prometheus.wait_fires("OptpolinedStalled")
    finally:
        os.kill(scene.guest.pid, signal.SIGCONT)
    assert alert["labels"]["severity"] == "critical"
    scene.guest.run("optload --state /run/optload >/dev/null 2>&1 &")
    scene.daemon.wait(at_work)


def test_everything_is_reverted_and_frozen(scene: Scene) -> None:
    scene.daemon.ask(Revert())
    scene.prometheus.wait_fires("OptpolinedCoverageFell", 90)
    alert = scene.prometheus.wait_fires("OptpolinedHeld", 90)
    assert alert["labels"]["phase"] == "frozen"
    scene.daemon.ask(Thaw())
    scene.daemon.wait(at_work)


def test_an_arena_that_is_too_small(scene: Scene) -> None:
    scene.daemon.end()
    with_arena(scene.guest, 4096)
    scene.daemon.start(FAST + FEW_SITES)
    alert = scene.prometheus.wait_fires("OptpolinedArenaFull", 120)
    assert " hot sites get no space" in alert["annotations"]["description"]


def test_a_guest_whose_memory_makes_no_sense(scene: Scene) -> None:
    """Another program writes to the module's header, again and again."""
    side = GuestConfig(
        qemu=QemuConfig(qmp_socket=scene.guest.side_qmp),
        runtime_directory=scene.guest.directory / "run",
    )
    with connect(side, writable=False) as link:
        liar = Liar(scene.guest, link, ram_ranges(link.monitor))
        for _ in range(LIES):
            scene.daemon.wait(lambda status: status.phase is not DaemonPhase.ATTACHING)
            with liar.says(liar.field("modules_count"), b"\xff" * 4):
                scene.daemon.wait(lambda status: status.phase is DaemonPhase.ATTACHING)
    scene.prometheus.wait_fires("OptpolinedReadErrors")
    scene.daemon.end()


def test_too_few_records_for_all_sites(scene: Scene) -> None:
    scene.guest.run("rmmod optpoline; insmod /lib/modules/optpoline.ko nr_records=512")
    scene.daemon.start(FAST)
    alert = scene.prometheus.wait_fires("OptpolinedChangesRefused", 120)
    assert alert["labels"]["reason"] == "no_record_left"


def command(scene: Scene, *saved_overrides: str) -> None:
    """Send a command to optbench in the guest."""
    scene.guest.run("; ".join(f"echo {order} >/proc/optbench" for order in saved_overrides))
