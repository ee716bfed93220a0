"""A daemon that is killed while it holds a real QEMU stopped: its guardian resumes the guest."""

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from optpolined.qemu import guardian
from tests.guest.bare_qemu import Qemu, connect, runs, soon, started

ROOT = Path(guardian.__file__).parents[2]


DAEMON = """
import sys, time
from pathlib import Path
sys.path.append(sys.argv[1])
from optpolined.addresses import GuestPhysical
from optpolined.qemu.gdbstub import GdbStub, open_stub
from optpolined.qemu.guardian import Guardian
from optpolined.qemu.monitor import Monitor
from optpolined.qemu.stopnote import StopNote

with Monitor.connect(Path(sys.argv[2])) as monitor:
    note = StopNote.create(Path(sys.argv[2] + ".stop"), 1)
    guardian = Guardian.start(Path(sys.argv[2]), note)
    path = open_stub(monitor, Path(sys.argv[3]))
    stub = GdbStub.connect(path, guard=guardian)
    print("ready", guardian.pid, flush=True)
    while True:
        stub.stop()
        if sys.argv[4] == "hold":
            print("stopped", flush=True)
            time.sleep(1000)
        stub.write([(GuestPhysical(0x4000000 + 8 * n), b"x" * 8) for n in range(400)])
        stub.resume()
"""


@contextlib.contextmanager
def daemon(qemu: Qemu, act: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A daemon at work, and the pid of its guardian."""
    arguments = [str(ROOT), str(qemu.qmp), str(qemu.gdb), act]
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON, *arguments], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            word, pid = process.stdout.readline().split()
            assert word == b"ready"
            if act == "hold":
                assert process.stdout.readline() == b"stopped\n"
            yield process, int(pid)
        finally:
            process.kill()


def ended(pid: int) -> bool:
    """Whether a process that is not our child has ended, and may be a zombie."""
    return not Path(f"/proc/{pid}/fd/0").exists()


def test_a_daemon_killed_in_a_stop_leaves_a_guest_that_soon_runs() -> None:
    with started() as qemu:
        connect(qemu).close()
        with daemon(qemu, "hold") as (process, watcher):
            process.kill()
            process.wait()
            # QEMU serves one client: this one must not come before the guardian.
            assert soon(lambda: ended(watcher))
            with connect(qemu) as monitor:
                assert monitor.status() == "running"


def test_a_daemon_killed_anywhere_leaves_a_guest_that_soon_runs() -> None:
    chance = random.Random(3)
    with started() as qemu:
        connect(qemu).close()
        for _ in range(8):
            with daemon(qemu, "loop") as (process, watcher):
                time.sleep(chance.random() * 0.02)
                process.kill()
                process.wait()
                assert soon(partial(ended, watcher))
                with connect(qemu) as monitor:
                    assert runs(monitor)
                    # Nothing that the daemon had sent stops it later.
                    time.sleep(0.1)
                    assert monitor.status() == "running"
