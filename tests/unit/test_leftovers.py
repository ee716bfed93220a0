"""The check at the end of a run finds what the run has left, and nothing else."""

import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leftovers
from tests.leftovers import Leftover, TestRun


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestRun]:
    monkeypatch.setattr(leftovers, "_ENDING_SECONDS", 0.0)
    run = TestRun()
    yield run
    run.end([])


def test_a_run_that_leaves_nothing(run: TestRun) -> None:
    subprocess.run(["true"], check=True)
    with tempfile.TemporaryDirectory(prefix="optpolined-guest-") as name:
        assert Path(name).parent == run.directory
    assert run.leftovers() == []


def test_a_process_is_found_and_killed_also_when_its_parent_has_ended(
    run: TestRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = subprocess.run(
        ["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"],
        check=True,
        capture_output=True,
        text=True,
    )
    pid = int(started.stdout)
    assert run.leftovers() == [Leftover(f"process {pid}: sleep 1000", pid)]
    run.end(run.leftovers())
    monkeypatch.setattr(leftovers, "_ENDING_SECONDS", 60.0)  # a process that was killed takes time
    assert TestRun.leftovers(run) == []


def test_sockets_and_directories_of_guests_are_found(run: TestRun) -> None:
    directory = Path(tempfile.mkdtemp(prefix="optpolined-guest-"))
    path = directory / "qmp"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert {found.what for found in run.leftovers()} == {
            f"a socket at {path}",
            f"the directory of a guest, {directory}",
            f"the file of a socket, {path}",
        }
    assert f"the file of a socket, {path}" in {found.what for found in run.leftovers()}


def test_another_run_is_not_taken_for_ours(run: TestRun) -> None:
    with subprocess.Popen(["sleep", "1000"], env={"OPTPOLINED_TEST_RUN": ":other"}) as other:
        assert run.leftovers() == []
        other.kill()
