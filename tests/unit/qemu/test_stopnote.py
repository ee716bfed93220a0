"""The note about a stop outlives its writer, and is about one QEMU only."""

import stat
from pathlib import Path

import pytest

from optpolined.qemu.stopnote import StopNote, note_path, noted_pids


def test_what_one_writes_another_reads(tmp_path: Path) -> None:
    path = note_path(tmp_path, 7)
    with StopNote.create(path, 100) as writer:
        reader = StopNote.find(path, 100)
        assert reader is not None
        assert not reader.is_set
        writer.set()
        assert reader.is_set
        reader.clear()
        assert not writer.is_set
        reader.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_only_notes_that_are_set_are_listed(tmp_path: Path) -> None:
    for pid in (7, 8):
        StopNote.create(note_path(tmp_path, pid), 100).close()
    with StopNote.create(note_path(tmp_path, 9), 100) as note:
        note.set()
    (tmp_path / "qemu-x.stop").write_bytes(b"\1")
    (tmp_path / "qemu-10.stop").write_bytes(b"")
    assert noted_pids(tmp_path) == [9]
    assert noted_pids(tmp_path / "absent") == []


def test_a_note_about_an_earlier_qemu_of_the_same_pid_is_none(tmp_path: Path) -> None:
    path = note_path(tmp_path, 7)
    assert StopNote.find(path, 100) is None
    StopNote.create(path, 100).close()
    assert StopNote.find(path, 101) is None
    path.write_bytes(b"")
    assert StopNote.find(path, 100) is None


def test_a_new_note_is_not_the_file_of_the_old_one(tmp_path: Path) -> None:
    path = note_path(tmp_path, 7)
    with StopNote.create(path, 100) as old, StopNote.create(path, 100) as new:
        old.set()
        assert not new.is_set


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    path = note_path(tmp_path, 7)
    target = tmp_path / "target"
    target.write_bytes(b"\1100")
    path.symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        StopNote.find(path, 100)
    StopNote.create(path, 100).close()
    assert target.read_bytes() == b"\1100"
