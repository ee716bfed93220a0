"""The daemon may die at any point: a sample of `make test-crash`, recovery and rescue."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest.image.boot import Guest
from optpolined.codegen.forms import LEARNING
from optpolined.config import Settings
from optpolined.patching.protocol.steps import Write
from optpolined.patching.protocol.transport import WRITTEN
from optpolined.qemu.stopnote import noted_pids
from optpolined.session.attach import attach
from optpolined.session.link import connect
from optpolined.session.recover_only import recover_only
from tests.guest.crash_watch import Watch
from tests.guest.harness import PATIENCE_SECONDS, config_of, write_config

# A daemon that stands in a stop.
DAEMON = """
import sys, time
from pathlib import Path
from optpolined.config import load
from optpolined.session.link import connect
with connect(load("test", [Path(sys.argv[1])])) as link:
    link.stub.stop()
    print("stopped", flush=True)
    time.sleep(60)
"""


def test_a_daemon_killed_anywhere_does_no_harm() -> None:
    program = [sys.executable, "-m", "tests.guest.crash", "--every", "50", "--random", "4"]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    *_, kills, text = result.stdout.splitlines()
    assert re.fullmatch(
        r"kills: \d\d, guest errors: 0, unrecovered sites: 0, longest stop after a kill: \d+ ms",
        kills,
    )
    assert text == "text identical: True"


def command(program: str, *arguments: object) -> tuple[int, str]:
    """Run one of the two commands; return its exit code, and the line that it prints."""
    path = Path(sys.executable).with_name(program)
    result = subprocess.run(
        [path, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 1, result.stdout + result.stderr
    return result.returncode, lines[0]


@pytest.fixture
def left(guest: Guest) -> list[int]:
    """Leave sites patched, as a daemon that died."""
    config = config_of(guest)
    with (
        connect(config) as link,
        attach(link, Settings(config), time.monotonic, force=False) as session,
    ):
        sites = sorted(session.survey.inventory.eligible)[:100]
        session.apply(dict.fromkeys(sites, LEARNING))
        session.leave()
    return [int(site) for site in sites]


def test_recover_only_restores_and_lets_the_module_go(
    guest: Guest, left: list[int], tmp_path: Path
) -> None:
    write_config(guest, tmp_path)
    recover = ("--guest", "test", "--config-dir", tmp_path, "--recover-only")
    code, line = command("optpolined", *recover)
    assert (code, line) == (0, f"{len(left)} sites restored; optpoline.ko released")
    code, line = command("optpolined", *recover)
    assert (code, line) == (0, "nothing to restore; optpoline.ko was not held")


def test_recover_only_restores_a_paused_guest_and_keeps_its_module(
    guest: Guest, left: list[int]
) -> None:
    config = config_of(guest)
    with Watch(guest.side_qmp) as watch:
        watch.execute("stop")
        recovered = recover_only(config)
        assert not watch.is_running()
        watch.execute("cont")
    assert recovered.restored == len(left)
    assert not recovered.is_complete
    assert str(recovered).endswith("optpoline.ko stays held: the guest is paused")
    assert recover_only(config).is_complete


def test_recover_only_leaves_and_names_the_bytes_of_others(
    guest: Guest, left: list[int], tmp_path: Path
) -> None:
    config = config_of(guest)
    write_config(guest, tmp_path)
    recover = ("--guest", "test", "--config-dir", tmp_path, "--recover-only")
    with (
        connect(config) as link,
        attach(link, Settings(config), time.monotonic, force=False) as session,
    ):
        assert session.restore() == []
        site = session.survey.inventory.eligible[min(session.survey.inventory.eligible)]
        theirs = b"\xcc" + site.original[1:]
        assert site.address in left
        assert session.transport.write([Write(site.address, site.original, theirs)]) == [WRITTEN]
        session.apply({max(session.survey.inventory.eligible): LEARNING})
    code, line = command("optpolined", *recover)
    assert code == 1
    assert line.startswith("1 sites restored; optpoline.ko stays held: foreign bytes stand")
    assert site.function in line
    with (
        connect(config) as link,
        attach(link, Settings(config), time.monotonic, force=False) as session,
    ):
        assert session.transport.write([Write(site.address, theirs, site.original)]) == [WRITTEN]
    assert recover_only(config).is_complete


@contextmanager
def in_a_stop(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a daemon that stops the guest and stays there."""
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON, directory], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"stopped\n"
            yield process
        finally:
            process.kill()


def test_a_guest_whose_daemon_and_guardian_are_killed_is_rescued(
    guest: Guest, tmp_path: Path
) -> None:
    write_config(guest, tmp_path)
    rescue = ("rescue", "--guest", "test", "--config-dir", tmp_path)
    with Watch(guest.side_qmp) as watch:
        for resumer in ("optpolinectl", "the next daemon"):
            with in_a_stop(tmp_path) as process:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
                (guardian,) = map(int, children.split())
                assert command("optpolinectl", *rescue)[1].startswith("nothing to resume")
                os.kill(guardian, signal.SIGKILL)
            assert not watch.is_running()
            assert noted_pids(guest.directory / "run") == [guest.pid]
            if resumer == "optpolinectl":
                code, line = command("optpolinectl", *rescue)
                assert (code, line.partition(":")[0]) == (0, "resumed")
            else:
                recover_only(config_of(guest))
            assert watch.is_running()
            assert noted_pids(guest.directory / "run") == []
        code, line = command("optpolinectl", *rescue)
        assert (code, line.partition(":")[0]) == (0, "nothing to resume")


def test_a_guest_that_an_administrator_paused_is_not_rescued(guest: Guest, tmp_path: Path) -> None:
    write_config(guest, tmp_path)
    with Watch(guest.side_qmp) as watch:
        watch.execute("stop")
        code, line = command("optpolinectl", "rescue", "--guest", "test", "--config-dir", tmp_path)
        assert (code, line.partition(":")[0]) == (0, "nothing to resume")
        assert not watch.is_running()
        watch.execute("cont")


def test_a_gdbstub_that_breaks_in_a_stop_leaves_a_guest_that_runs(guest: Guest) -> None:
    with Watch(guest.side_qmp) as watch:
        with connect(config_of(guest)) as link:
            assert link.stub is not None
            link.stub.stop()
            link.stub._held()._conversation.close()
            assert not watch.is_running()
        assert watch.is_running()
        assert not list((guest.directory / "run").iterdir())
