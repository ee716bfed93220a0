"""One daemon for a QEMU process."""

import fcntl
import os
from pathlib import Path

import pytest

from optpolined.session.errors import AttachRefusedError, InUseError
from optpolined.session.lock import held


def test_a_second_holder_is_refused_and_the_file_is_removed_at_the_end(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with held(directory, 7), held(directory, 8):
        with pytest.raises(InUseError, match="QEMU process 7"), held(directory, 7):
            pass
        assert sorted(path.name for path in directory.iterdir()) == ["qemu-7.lock", "qemu-8.lock"]
    assert list(directory.iterdir()) == []


def test_the_file_of_a_holder_that_died_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "qemu-7.lock").touch()
    with held(tmp_path, 7):
        pass


def test_a_file_that_its_last_holder_removes_meanwhile_is_not_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "qemu-7.lock"
    flock = fcntl.flock
    removed: list[int] = []

    def remove_first(descriptor: int, operation: int) -> None:
        if not removed:
            path.unlink()
            removed.append(os.fstat(descriptor).st_ino)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with held(tmp_path, 7):
        assert removed
        with pytest.raises(InUseError), held(tmp_path, 7):
            pass


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AttachRefusedError, match="must be writable"), held(tmp_path / "file", 7):
        pass
