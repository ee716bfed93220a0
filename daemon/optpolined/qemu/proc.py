"""What the host's kernel says of processes: proc(5), unix(7)."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from optpolined.qemu.errors import PermissionDeniedError, ProcessGoneError

__all__ = ("HOST", "Proc")

_LISTENS = 0x10000
"""__SO_ACCEPTCON among the flags of /proc/net/unix."""

_STATE, _START_TIME = 0, 19
"""Places in /proc/PID/stat, counted after the name in parentheses (fields 3 and 22)."""

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r")


@dataclass(frozen=True, slots=True)
class Proc:
    """The proc file system at ``root``; a test hands in a folder of fixtures."""

    root: Path = Path("/proc")

    def start_time(self, pid: int) -> int | None:
        """Return when process ``pid`` started, in clock ticks since the host's boot.

        ``None`` where there is no such process, or only its zombie.
        """
        try:
            stat = self._read(f"{pid}/stat")
        except OSError:
            return None
        # The name may hold anything, parentheses too.
        fields = stat.rpartition(")")[2].split()
        if len(fields) <= _START_TIME or fields[_STATE] in ("Z", "X"):
            return None
        return int(fields[_START_TIME])

    def names(self, pid: int) -> list[str]:
        """Return the name of process ``pid`` and, where we may see it, that of its program."""
        names = []
        try:
            names.append(self._read(f"{pid}/comm").strip())
            names.append((self.root / str(pid) / "exe").readlink().name)
        except OSError:
            pass  # Only its user and root may see exe.
        return names

    def mappings(self, pid: int) -> list[tuple[int, int]]:
        """Return start and end of what process ``pid`` has mapped and may read; neighbours joined.

        :raise PermissionDeniedError: we may not look.
        :raise ProcessGoneError: there is no such process.
        """
        mappings: list[tuple[int, int]] = []
        try:
            with (self.root / str(pid) / "maps").open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    if found := _MAPPING.match(line):
                        start, end = int(found[1], 16), int(found[2], 16)
                        if mappings and mappings[-1][1] == start:
                            start, _ = mappings.pop()
                        mappings.append((start, end))
        except PermissionError as error:
            raise _denied(pid) from error
        except (FileNotFoundError, ProcessLookupError) as error:
            raise ProcessGoneError(f"process {pid} has ended") from error
        return mappings

    def open_memory(self, pid: int) -> int:
        """Open the memory of process ``pid`` for reading; return the file descriptor.

        :raise PermissionDeniedError: CAP_SYS_PTRACE is missing, or it is another user's process.
        :raise ProcessGoneError: there is no such process.
        """
        try:
            return os.open(self.root / str(pid) / "mem", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise _denied(pid) from error
        except (FileNotFoundError, ProcessLookupError) as error:
            raise ProcessGoneError(f"process {pid} has ended") from error

    def holders(self, path: Path) -> Iterator[int]:
        """Yield each process that has a socket open that listens at ``path``."""
        links = {f"socket:[{inode}]" for inode in self._listeners(path)}
        if not links:
            return
        for entry in self.root.iterdir():
            if not re.fullmatch(r"\d+", entry.name):
                continue
            try:
                if any(str(link.readlink()) in links for link in (entry / "fd").iterdir()):
                    yield int(entry.name)
            except OSError:  # it has ended, or it is another user's
                continue

    def _listeners(self, path: Path) -> Iterator[int]:
        """Yield the inode of each unix socket that listens at ``path``."""
        names = {str(path), str(path.absolute()), str(path.resolve())}
        try:
            text = self._read("net/unix")
        except OSError:
            return
        for line in text.splitlines()[1:]:
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and fields[7] in names and int(fields[3], 16) & _LISTENS:
                yield int(fields[6])

    def _read(self, name: str) -> str:
        return (self.root / name).read_text(encoding="utf-8", errors="replace")


HOST = Proc()
"""This host's."""


def _denied(pid: int) -> PermissionDeniedError:
    return PermissionDeniedError(
        f"the memory of process {pid} may not be read: run as root, or as QEMU's user with "
        "CAP_SYS_PTRACE"
    )
