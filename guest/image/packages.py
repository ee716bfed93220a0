"""Debian's kernel packages: found, downloaded and unpacked, never installed.

All packages are unpacked into one tree, ``build/packages/root``: they share no file but
linux-headers-common and linux-kbuild, which are the same ones for both flavours.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from guest.image.errors import PackagesError
from guest.image.paths import PACKAGES, Flavour, locked
from guest.image.tools import progress, run

__all__ = ("Kernel", "provide")

_META_PACKAGES: dict[Flavour, str] = {
    "cloud": "linux-image-cloud-amd64",
    "plain": "linux-image-amd64",
}
_IMAGE_DEPENDENCY = re.compile(
    r"^Depends: linux-image-(6\.1\.0-\d+)((?:-cloud)?-amd64)\b", re.MULTILINE
)

# apt warns when its own user cannot reach the folder that it downloads to.
_APT_OPTIONS = ("-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One unpacked kernel."""

    release: str
    """As ``uname -r`` says it: ``6.1.0-56-cloud-amd64``."""

    @property
    def vmlinuz(self) -> Path:
        return PACKAGES / "root" / "boot" / f"vmlinuz-{self.release}"

    @property
    def headers(self) -> Path:
        """The folder to build modules in: ``make -C headers M=...``."""
        return PACKAGES / "root" / "usr" / "src" / f"linux-headers-{self.release}"


def provide(flavour: Flavour) -> Kernel:
    """Return the kernel of ``flavour``, downloaded the first time.

    :raise PackagesError: where apt does not know, or cannot download, a package.
    """
    stamp = PACKAGES / flavour
    with locked(PACKAGES):
        if not stamp.exists():
            stamp.write_text(_download(flavour).release)
        return Kernel(stamp.read_text())


def _download(flavour: Flavour) -> Kernel:
    try:
        return _download_newest(flavour)
    except PackagesError:
        # The package list is missing or too old: the version that it names may be gone.
        progress("apt-get update")
        as_root = () if os.geteuid() == 0 else ("sudo",)
        run(
            (*as_root, "apt-get", *_APT_OPTIONS, "update"),
            error=PackagesError,
            what="update the package list",
        )
        return _download_newest(flavour)


def _download_newest(flavour: Flavour) -> Kernel:
    version, suffix = _newest(flavour)
    kernel = Kernel(version + suffix)
    names = (
        f"linux-image-{kernel.release}",
        f"linux-headers-{kernel.release}",
        f"linux-headers-{version}-common",
        "linux-kbuild-6.1",
    )
    progress(f"downloading and unpacking the packages of {kernel.release} (half a minute)")
    archives = PACKAGES / "archives"
    shutil.rmtree(archives, ignore_errors=True)
    archives.mkdir()
    run(
        ("apt-get", *_APT_OPTIONS, "download", *names),
        error=PackagesError,
        what=f"download the packages of {kernel.release}",
        cwd=archives,
    )
    for archive in sorted(archives.glob("*.deb")):
        run(
            ("dpkg-deb", "-x", archive, PACKAGES / "root"),
            error=PackagesError,
            what=f"unpack {archive.name}",
        )
    shutil.rmtree(archives)
    _use_headers_in_place(kernel, version)
    return kernel


def _newest(flavour: Flavour) -> tuple[str, str]:
    """Return version and suffix of the kernel that the meta package asks for."""
    meta = _META_PACKAGES[flavour]
    shown = run(
        ("apt-cache", "show", "--no-all-versions", meta),
        error=PackagesError,
        what=f"find the package {meta}",
    ).decode()
    found = _IMAGE_DEPENDENCY.search(shown)
    if found is None:
        raise PackagesError(f"{meta} names no kernel 6.1: Debian 12's package lists are needed")
    return found[1], found[2]


def _use_headers_in_place(kernel: Kernel, version: str) -> None:
    """Make the headers' Makefile include its neighbour, not the installed one."""
    makefile = kernel.headers / "Makefile"
    common = f"linux-headers-{version}-common/Makefile"
    if makefile.read_text().strip() != f"include /usr/src/{common}":
        raise PackagesError(f"{makefile} is not the one line that we know how to change")
    makefile.write_text(f"include ../{common}\n")
