"""The paths of the guest's parts, and the kernels that we know."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

__all__ = (
    "BUILD",
    "FLAVOURS",
    "GUEST",
    "KERNEL",
    "PACKAGES",
    "PLUGIN",
    "DebianFlavour",
    "Flavour",
    "locked",
)

DebianFlavour = Literal["cloud", "plain"]
"""``cloud``: Debian's linux-image-cloud-amd64; ``plain``: linux-image-amd64."""

Flavour = DebianFlavour | Literal["plugin"]
"""``plugin``: the kernel that kernel.py builds."""

FLAVOURS: tuple[DebianFlavour, ...] = ("cloud", "plain")
"""The flavours that ``make image`` builds."""

GUEST = Path(__file__).resolve().parent.parent
"""The sources: this folder's parent."""

PACKAGES = GUEST.parent / "build" / "packages"
"""Debian packages, unpacked."""

BUILD = GUEST.parent / "build" / "guest"
"""The built images, one folder for each flavour."""

PLUGIN = GUEST.parent / "build" / "plugin"
"""The gcc plugin."""

KERNEL = GUEST.parent / "build" / "kernel"
"""The kernel that is built with it."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make ``directory`` if it does not exist, and keep every other process out of it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
