"""The note "the guest may be stopped by us": a byte of a file, which outlives the daemon.

    qemu-PID.stop       00, 01 or 02, then when that QEMU started, in digits

The daemon sets the byte to 1 before a stop and clears it after it, through a shared mapping, which
costs nothing where the file is on tmpfs.  When the daemon is dead, its guardian reads it, or
`optpolinectl rescue`, or the next daemon; the one that resumes the guest leaves a 2, which the next
daemon counts.  The time keeps a later QEMU of the same pid apart.  Each daemon makes a new file: a
guardian that is late cannot write into it.

The standard library only: the guardian imports this.
"""

import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self

__all__ = ("StopGuard", "StopNote", "note_path", "noted_pids")

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_NAME = "qemu-{}.stop"
_SIZE_MAX = 32
_STOPPED = 1
_RESCUED = 2


def note_path(directory: Path, pid: int) -> Path:
    """Where the note about the QEMU process ``pid`` is."""
    return directory / _NAME.format(pid)


def noted_pids(directory: Path) -> list[int]:
    """The QEMU processes whose note is set."""
    pids = []
    for path in directory.glob(_NAME.format("*")):
        pid = path.stem.removeprefix("qemu-")
        with suppress(FileNotFoundError):
            if pid.isdecimal() and path.read_bytes()[:1] == bytes([_STOPPED]):
                pids.append(int(pid))
    return pids


class StopGuard(Protocol):
    """What must know of a stop before it begins, and when it has ended."""

    def stopping(self) -> None:
        """Take note that the guest may be stopped by us from now on."""

    def resumed(self) -> None:
        """Take note that it no longer is."""


class StopNote:
    """The note, open."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Take over ``descriptor``; :meth:`create` and :meth:`find` are what callers want."""
        self._path = path
        self._byte = mmap.mmap(descriptor, 1)
        self.descriptor = descriptor

    @classmethod
    def create(cls, path: Path, start_time: int) -> Self:
        """Make a new note, not set, in place of an old one.

        :param start_time: When QEMU started (:class:`~optpolined.qemu.process.QemuProcess`).
        :raise OSError: the file cannot be made.
        """
        path.unlink(missing_ok=True)
        descriptor = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, b"\0%d" % start_time)
            return cls(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def find(cls, path: Path, start_time: int) -> Self | None:
        """Open the note at ``path``; ``None`` where it is not about a QEMU of that start.

        :raise OSError: it cannot be opened.
        """
        try:
            descriptor = os.open(path, _FLAGS)
        except FileNotFoundError:
            return None
        try:
            if os.pread(descriptor, _SIZE_MAX, 1) == b"%d" % start_time:
                return cls(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_set(self) -> bool:
        """Whether the guest may be stopped by us."""
        return self._byte[0] == _STOPPED

    @property
    def tells_of_rescue(self) -> bool:
        """Whether the guest was resumed after the daemon's death."""
        return self._byte[0] == _RESCUED

    def set(self) -> None:
        """Note that the guest may be stopped by us from now on."""
        self._byte[0] = _STOPPED

    def rescued(self) -> None:
        """Note that the daemon has died and the guest was resumed."""
        self._byte[0] = _RESCUED

    def clear(self) -> None:
        """Note that it no longer is."""
        self._byte[0] = 0

    def remove(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, which stays."""
        self._byte.close()
        os.close(self.descriptor)
