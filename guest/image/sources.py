"""The sources below guest/: which files they are, their digest, and copies to build in."""

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from guest.image.paths import GUEST

__all__ = ("copied", "digest", "files")

_SUFFIXES = (".S", ".c", ".cc", ".h", ".py")
_NAMES = ("Kbuild", "Makefile", "agent", "init")


def files(*names: str) -> list[Path]:
    """Return the sources in the folders ``names``, without what a build in place left there."""
    return sorted(
        path
        for name in names
        for path in (GUEST / name).rglob("*")
        if (path.suffix in _SUFFIXES or path.name in _NAMES) and not path.name.endswith(".mod.c")
    )


def digest(first: str, paths: Iterable[Path]) -> str:
    """Return a digest of ``first`` and of the names, modes and contents of ``paths``."""
    summed = hashlib.sha256(first.encode())
    for path in paths:
        summed.update(f"{path} {path.stat().st_mode}\n".encode())
        summed.update(hashlib.sha256(path.read_bytes()).digest())
    return summed.hexdigest()


def copied(to: Path, *names: str) -> Path:
    """Copy the sources in the folders ``names``, so that nothing is built among them."""
    shutil.rmtree(to, ignore_errors=True)
    for source in files(*names):
        copy = to / source.relative_to(GUEST)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, copy)
    return to
