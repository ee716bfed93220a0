"""The gdbstub is given to a debugger under a daemon at work, and taken back."""

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from guest.image.boot import Guest
from optpolined.addresses import GuestPhysical
from optpolined.api.status import DaemonPhase, Status
from optpolined.qemu import rsp
from optpolined.qemu.gdbstub import GdbStub
from optpolined.qemu.monitor import Monitor
from tests.guest.command import COMMAND, optpolined
from tests.guest.harness import PATIENCE_SECONDS, end_load, load_state, start_load, wait_until
from tests.guest.running import Running, text_was_put_back

AT = GuestPhysical(0x1000)

FEW_SITES = """
[policy]
mode = "opt-in"
include = ["vfs_*", "security_file_*", "pipe_*", "ksys_*", "do_*", "*_read*", "*_write*"]
"""
"""Enough to be promoted, and quick to learn."""


class Gdb:
    """As much of a real gdb as it takes: it acknowledges, and has several processes."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_SECONDS)
        self._socket.connect(str(path))
        self._replies = rsp.Replies()

    def send(self, body: bytes) -> None:
        self._socket.sendall(rsp.packet(body))

    def reply(self) -> bytes:
        while (reply := self._replies.take(skip_noise=True)) is None:
            received = self._socket.recv(0x1000)
            assert received, "QEMU hung up"
            self._replies.feed(received)
        self._socket.sendall(b"+")
        return reply

    def ask(self, body: bytes) -> bytes:
        self.send(body)
        while rsp.is_pause(reply := self.reply()):
            pass
        return reply

    def close(self) -> None:
        self._socket.close()


class Daemon(Running):
    """The daemon of a guest at work, and the command that gives it orders."""

    def __init__(self, guest: Guest, directory: Path) -> None:
        super().__init__(guest, directory, FEW_SITES)
        self._directory = directory

    def command(self, name: str) -> tuple[int, str]:
        """Run `optpolinectl`; return its exit code, and the one line that it prints."""
        result = subprocess.run(
            [
                *(COMMAND.with_name("optpolinectl"), name),
                *("--guest", "test", "--config-dir", self._directory),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        (line,) = (result.stdout + result.stderr).splitlines()
        return result.returncode, line

    def release(self) -> Path:
        """Have the stub released; return the socket that the debugger is told to connect to."""
        code, line = self.command("release-stub")
        assert code == 0, line
        assert "optpolinectl take-stub --guest test" in line
        place = re.search(r"target remote (\S+)'", line)
        assert place is not None, line
        return Path(place[1])

    def now(self) -> Status:
        """Return the status as it is now."""
        return self.wait_for(lambda _: True)

    def wait_taken_back(self) -> str:
        """Have the stub taken back as soon as QEMU has noticed that the debugger is gone."""
        _, line = wait_until(
            lambda: self.command("take-stub"), "the stub is taken back", lambda said: said[0] == 0
        )
        return line

    def wait_promoted(self) -> None:
        self.wait_for(lambda status: bool(status.targets_histogram))

    def wait_poked_since(self, pokes: int) -> None:
        self.wait_for(lambda status: status.pokes > pokes)


@pytest.fixture
def loaded(guest: Guest) -> Iterator[Guest]:
    """The shared guest under a workload that checks itself."""
    start_load(guest)
    yield guest
    end_load(guest)


@pytest.fixture
def daemon(loaded: Guest, tmp_path: Path) -> Iterator[Daemon]:
    running = Daemon(loaded, tmp_path)
    yield running
    running.kill()


@pytest.fixture
def side(guest: Guest) -> Iterator[Monitor]:
    with Monitor.connect(guest.side_qmp) as monitor:
        yield monitor


def wait_works(guest: Guest) -> None:
    """Wait until the workload has gone on by a round."""
    before = load_state(guest)["rounds"]
    wait_until(
        lambda: load_state(guest)["rounds"],
        f"the workload goes on after {before} rounds",
        lambda rounds: rounds > before,
    )


def test_a_debugger_has_the_stub_for_a_while(loaded: Guest, daemon: Daemon, side: Monitor) -> None:
    """The first one leaves the guest stopped at a breakpoint; the second one behaves."""
    daemon.wait_promoted()
    assert daemon.command("take-stub") == (0, "the daemon has the gdbstub")
    vfs_read = int(loaded.run("grep ' T vfs_read$' /proc/kallsyms").split()[0], 16)

    path = daemon.release()
    assert daemon.release() == path, "again tells the same"
    with closing(Gdb(path)) as gdb:
        assert b"PacketSize" in gdb.ask(b"qSupported:multiprocess+")
        assert gdb.ask(b"qqemu.PhyMemMode") == b"0"
        before = daemon.wait_for(lambda status: status.phase is DaemonPhase.RELEASED)
        assert daemon.wait_epochs(10).phase is DaemonPhase.RELEASED
        assert side.status() == "paused"
        code, line = daemon.command("take-stub")
        assert code == 2
        assert "a gdb is connected" in line
        assert daemon.now().stub_released
        assert gdb.ask(b"Z0,%x,1" % vfs_read) == b"OK"
        gdb.send(b"c")
        assert gdb.reply().startswith(b"T05")
        after = daemon.now()
        assert (after.epoch, after.pokes) == (before.epoch, before.pokes)

    assert "the guest stands (debug)" in daemon.wait_taken_back()
    daemon.wait_for(lambda status: status.phase is DaemonPhase.PAUSED)
    side.execute("cont")
    wait_works(loaded)  # the breakpoint that the debugger left is gone
    daemon.wait_poked_since(before.pokes)

    with GdbStub.connect(daemon.release()) as stub:
        before = daemon.wait_for(lambda status: status.phase is DaemonPhase.RELEASED)
        assert stub.stop()
        first = stub.read([(AT, 64)])
        assert daemon.wait_epochs(10).phase is DaemonPhase.RELEASED
        assert stub.read([(AT, 64)]) == first
        stub.resume()
        wait_works(loaded)
        assert daemon.now().pokes == before.pokes
    assert daemon.wait_taken_back() == "taken back"
    daemon.wait_poked_since(before.pokes)
    daemon.wait_promoted()
    code, errors = daemon.end()
    assert code == 0, errors
    assert text_was_put_back(daemon)


def test_a_daemon_that_ends_takes_the_stub_back_as_soon_as_it_can(daemon: Daemon) -> None:
    daemon.wait_promoted()
    with GdbStub.connect(daemon.release()):
        daemon.process.terminate()
        daemon.wait_says("waiting 20 s for its end")
        daemon.wait_for(lambda status: status.phase is DaemonPhase.DETACHING)
    code, errors = daemon.wait_end()
    assert code == 0, errors
    assert text_was_put_back(daemon)


def test_where_the_debugger_stays_the_sites_stay_until_the_next_start(
    loaded: Guest, daemon: Daemon, tmp_path: Path
) -> None:
    daemon.wait_promoted()
    with GdbStub.connect(daemon.release()) as stub:
        code, errors = daemon.end()
        assert code == 1
        assert "--recover-only" in errors
        assert json.loads(daemon.report_file.read_text())["left_to_debugger"] is True
        wait_works(loaded)
        assert stub.stop(), "the debugger was not cut off"
        stub.resume()
    result = optpolined("--guest", "test", "--config-dir", tmp_path, "--recover-only")
    assert result.returncode == 0, result.stderr
    assert "sites restored; optpoline.ko released" in result.stdout
