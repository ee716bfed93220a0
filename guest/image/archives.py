"""Downloads Debian packages and unpacks them; it never installs one."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from guest.image.errors import PackagesError
from guest.image.tools import progress, run

__all__ = ("emptied", "unpack", "with_fresh_lists")

_T = TypeVar("_T")

# apt warns when its own user cannot reach the folder that it downloads to.
_APT_OPTIONS = ("-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3")


def unpack(packages: Sequence[str], tree: Path, *, archives: Path, hint: str = "") -> None:
    """Download ``packages``, each a name or ``name=version``, and unpack them into ``tree``.

    :param archives: a folder to download to; it is emptied first, and removed at the end.
    :param hint: what to do if it fails, for the error's message.
    :raise PackagesError: apt cannot download one of them.
    """
    emptied(archives)
    run(
        ("apt-get", *_APT_OPTIONS, "download", *packages),
        error=PackagesError,
        what=f"download {', '.join(packages)}{f' ({hint})' if hint else ''}",
        cwd=archives,
    )
    for archive in sorted(archives.glob("*.deb")):
        run(
            ("dpkg-deb", "-x", archive, tree),
            error=PackagesError,
            what=f"unpack {archive.name}",
        )
    shutil.rmtree(archives)


def with_fresh_lists(download: Callable[[], _T]) -> _T:
    """Download; if that fails, try once more with new package lists.

    :raise PackagesError: it fails again.
    """
    try:
        return download()
    except PackagesError:
        # The package list is missing or too old: the version that it names may be gone.
        progress("apt-get update")
        as_root = () if os.geteuid() == 0 else ("sudo",)
        run(
            (*as_root, "apt-get", *_APT_OPTIONS, "update"),
            error=PackagesError,
            what="update the package list",
        )
        return download()


def emptied(directory: Path) -> Path:
    """Return the folder, emptied."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory
