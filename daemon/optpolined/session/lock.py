"""One daemon for a QEMU process: a lock file in the runtime directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optpolined.session.errors import AttachRefusedError, InUseError

__all__ = ("held",)

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@contextmanager
def held(directory: Path, pid: int) -> Iterator[None]:
    """Hold the lock of the QEMU process ``pid``; it ends with us, however we end.

    :raise InUseError: another daemon holds it.
    :raise AttachRefusedError: the file cannot be made.
    """
    path = directory / f"qemu-{pid}.lock"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _locked(path)
    except BlockingIOError as error:
        raise InUseError(pid) from error
    except OSError as error:
        raise AttachRefusedError(
            f"{error.filename or path}: {error.strerror}; runtime_directory must be writable"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _locked(path: Path) -> int:
    """Open and lock the file; again where its last holder has removed it in between."""
    while True:
        lock = os.open(path, _FLAGS, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(lock, path):
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
