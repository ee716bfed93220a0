"""Finds, downloads and unpacks Debian's kernel packages; it never installs one.

All packages are unpacked into one tree, ``build/packages/root``: they share no file but
linux-headers-common and linux-kbuild, which both flavours have in common.
"""

import gzip
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guest.image.archives import emptied, unpack, with_fresh_lists
from guest.image.errors import PackagesError
from guest.image.paths import PACKAGES, DebianFlavour, locked
from guest.image.tools import progress, run

__all__ = (
    "Kernel",
    "config",
    "provide",
    "provide_sources",
    "source_version",
    "unpack_sources",
)

_META_PACKAGES: dict[DebianFlavour, str] = {
    "cloud": "linux-image-cloud-amd64",
    "plain": "linux-image-amd64",
}
_IMAGE_DEPENDENCY = re.compile(
    r"^Depends: linux-image-(6\.1\.0-\d+)((?:-cloud)?-amd64)\b", re.MULTILINE
)

_CHANGELOG_HEAD = re.compile(rb"linux \((6\.1\.\d+-\w+)\) ")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel that is not installed."""

    release: str
    """The output of ``uname -r``: ``6.1.0-56-cloud-amd64``."""

    vmlinuz: Path

    headers: Path
    """The folder to build modules in: ``make -C headers M=...``."""


def _unpacked(release: str) -> Kernel:
    return Kernel(
        release,
        vmlinuz=PACKAGES / "root" / "boot" / f"vmlinuz-{release}",
        headers=PACKAGES / "root" / "usr" / "src" / f"linux-headers-{release}",
    )


def provide(flavour: DebianFlavour) -> Kernel:
    """Return the kernel of ``flavour``; download it the first time.

    :raise PackagesError: apt does not know, or cannot download, a package.
    """
    stamp = PACKAGES / flavour
    with locked(PACKAGES):
        if not stamp.exists():
            stamp.write_text(_download(flavour).release)
        return _unpacked(stamp.read_text())


def config(kernel: Kernel) -> Path:
    """Return the configuration that Debian built ``kernel`` with."""
    return PACKAGES / "root" / "boot" / f"config-{kernel.release}"


def provide_sources(kernel: Kernel, paths: Sequence[str]) -> Path:
    """Return a folder with the files and folders ``paths`` of the kernel's source tree.

    :raise PackagesError: where apt cannot download the source package of this very version.
    """
    version = source_version(kernel)
    tree = PACKAGES / f"linux-source-{version}"
    stamp = tree / ".paths"
    wanted = "\n".join(paths)
    with locked(PACKAGES):
        if not stamp.exists() or stamp.read_text() != wanted:
            with_fresh_lists(lambda: _unpack_sources(version, paths, tree))
            stamp.write_text(wanted)
    return tree


def unpack_sources(kernel: Kernel, tree: Path) -> None:
    """Unpack the kernel's whole source into ``tree``, which is emptied first: 1.4 GB.

    :raise PackagesError: where apt cannot download the source package of this very version.
    """
    version = source_version(kernel)
    with locked(PACKAGES):
        with_fresh_lists(lambda: _unpack_sources(version, ("",), tree))


def source_version(kernel: Kernel) -> str:
    """Return the version of the source package that the kernel was built from: ``6.1.192-2``."""
    changelog = (
        PACKAGES / "root/usr/share/doc" / f"linux-headers-{kernel.release}/changelog.Debian.gz"
    )
    with gzip.open(changelog) as file:
        found = _CHANGELOG_HEAD.match(file.readline())
    if found is None:
        raise PackagesError(f"{changelog} does not begin with a version of the package linux")
    return found[1].decode()


def _unpack_sources(version: str, paths: Sequence[str], tree: Path) -> None:
    package = f"linux-source-6.1={version}"
    progress(f"downloading {package} and unpacking what is needed of it (half a minute)")
    sources = PACKAGES / "sources"
    unpack(
        (package,),
        sources,
        archives=PACKAGES / "archives",
        hint="after make clean, the newest kernel is used",
    )
    names = (f"linux-source-6.1/{path}" for path in paths)
    tarball = sources / "usr/src/linux-source-6.1.tar.xz"
    run(
        ("tar", "-xJf", tarball, "-C", emptied(tree), "--strip-components=1", *names),
        error=PackagesError,
        what=f"unpack the sources in {package}",
    )
    shutil.rmtree(sources)


def _download(flavour: DebianFlavour) -> Kernel:
    return with_fresh_lists(lambda: _download_newest(flavour))


def _download_newest(flavour: DebianFlavour) -> Kernel:
    version, suffix = _newest(flavour)
    kernel = _unpacked(version + suffix)
    names = (
        f"linux-image-{kernel.release}",
        f"linux-headers-{kernel.release}",
        f"linux-headers-{version}-common",
        "linux-kbuild-6.1",
    )
    progress(f"downloading and unpacking the packages of {kernel.release} (half a minute)")
    unpack(names, PACKAGES / "root", archives=PACKAGES / "archives")
    _use_headers_in_place(kernel, version)
    return kernel


def _newest(flavour: DebianFlavour) -> tuple[str, str]:
    """Return version and suffix of the kernel that the meta package depends on."""
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
