"""What a run of the tests must not leave behind, whether it passes or fails.

Processes, sockets, directories of guests, shared memory and mounts.  Processes are known by a
variable in their environment, which their children inherit.  Temporary files of the run have a
directory of their own, so that those of another run on the same machine are not taken for ours.
"""

import contextlib
import os
import shutil
import signal
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ("Leftover", "TestRun")

_MARK = "OPTPOLINED_TEST_RUN"
_ENDING_SECONDS = 20.0
"""A process that was killed, and the guardian of a daemon, may take a moment to end."""
_SHARED = Path("/dev/shm")
_GUEST = "optpolined-guest-"


class Leftover(NamedTuple):
    """Something that is still there; ``pid`` where it is a process."""

    what: str
    pid: int | None = None


class TestRun:
    """One run of pytest: marks what it starts, and finds what of that is left at its end."""

    __test__ = False

    def __init__(self) -> None:
        self._own = uuid.uuid4().hex
        self._environment = {name: os.environ.get(name) for name in (_MARK, *_TEMPORARY)}
        outside = tempfile.gettempdir()
        self.directory = Path(tempfile.mkdtemp(prefix="optp-"))
        self.directory.chmod(0o711)  # some tests look into it as another user
        # Within the run of a test that runs pytest, a process is of both runs.
        os.environ[_MARK] = f"{self._environment[_MARK] or ''}:{self._own}"
        os.environ["TMPDIR"] = str(self.directory)
        # What tests keep for the reader stays where pytest has it.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", outside)
        tempfile.tempdir = None
        self._shared = set(_files(_SHARED))

    def leftovers(self) -> list[Leftover]:
        """Return what is left; waits a while for what is just ending."""
        deadline = time.monotonic() + _ENDING_SECONDS
        while (found := list(self._found())) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def end(self, leftovers: list[Leftover]) -> None:
        """Kill the processes that are left, and remove the directory."""
        for leftover in leftovers:
            if leftover.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(leftover.pid, signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)
        for name, value in self._environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        tempfile.tempdir = None

    def _found(self) -> Iterator[Leftover]:
        yield from self._processes()
        for bound in self._sockets():
            yield Leftover(f"a socket at {bound}")
        for path in self.directory.rglob("*"):
            if path.name.startswith(_GUEST):
                yield Leftover(f"the directory of a guest, {path}")
            elif stat.S_ISSOCK(_mode(path)):
                yield Leftover(f"the file of a socket, {path}")
        for line in Path("/proc/self/mounts").read_text().splitlines():
            place = line.split()[1]
            if Path(place).is_relative_to(self.directory):
                yield Leftover(f"a mount at {place}")
        # Those of other programs are in use.
        if new := set(_files(_SHARED)) - self._shared:
            yield from (Leftover(f"shared memory, {path}") for path in sorted(new - _in_use()))

    def _processes(self) -> Iterator[Leftover]:
        for process in _process_directories():
            if process.name == str(os.getpid()):
                continue
            with contextlib.suppress(OSError):
                if self._own.encode() in (process / "environ").read_bytes():
                    words = (process / "cmdline").read_bytes().split(b"\0")
                    shown = b" ".join(words).decode(errors="replace").strip()
                    yield Leftover(f"process {process.name}: {shown}", int(process.name))

    def _sockets(self) -> Iterator[str]:
        for line in Path("/proc/net/unix").read_text().splitlines():
            path = line.split(maxsplit=7)[7:]
            if path and Path(path[0]).is_relative_to(self.directory):
                yield path[0]


_TEMPORARY = ("TMPDIR", "PYTEST_DEBUG_TEMPROOT")


def _files(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []


def _mode(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.lstat().st_mode
    return 0


def _process_directories() -> list[Path]:
    return [path for path in Path("/proc").iterdir() if path.name.isdigit()]


def _in_use() -> set[Path]:
    """The files of shared memory that a process has open or mapped."""
    used = set()
    for process in _process_directories():
        with contextlib.suppress(OSError):
            for line in (process / "maps").read_text(errors="replace").splitlines():
                used.add(Path(line.split(maxsplit=5)[-1]))
            for number in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    used.add(number.readlink())
    return used
