"""Builds the disks of a small Debian with systemd, for the tests of the unit.

    python -m tests.systemd.debian

    build/systemd/debian.ext4   minbase, systemd, Python and QEMU, from the packages that this
                                machine's apt knows; made once
    build/systemd/ours.ext4     what `make install` puts in place, the guest that the daemon is to
                                manage, and files/; made again when a source has changed
    build/systemd/initramfs     mounts one over the other, and starts systemd

Both disks are only read.  Making them needs root, because mmdebstrap does.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from guest.image import build as image
from guest.image import sources, tools
from guest.image.cpio import Directory, Entry, File, archive
from guest.image.errors import BuildError, GuestError
from guest.image.packages import Kernel, provide
from guest.image.paths import PACKAGES, locked

__all__ = ("Disks", "build")

_ROOT = Path(__file__).resolve().parents[2]
_HERE = Path(__file__).resolve().parent
_BUILD = _ROOT / "build" / "systemd"
_BUSYBOX = Path("/bin/busybox")

_SUITE = "bookworm"
_PACKAGES = ("dbus", "python3", "qemu-system-x86", "systemd", "systemd-sysv")
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")
_INSTALLED = ("configs", "daemon", "guest/module", "requirements-run.lock")
"""The sources that `make install` reads."""

_MOUNTS = ("mnt/debian", "mnt/ours", "mnt/new")
_KERNEL_MODULES = ("virtio_pci", "virtio_blk", "ext4", "overlay", "kvm-amd")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


@dataclass(frozen=True, slots=True)
class Disks:
    """The files that a machine boots from."""

    kernel: Path
    initramfs: Path
    debian: Path
    ours: Path


def build() -> Disks:
    """Return disks that are up to date with their sources.

    :raise GuestError: a package cannot be downloaded, or a tool fails.
    """
    kernel = provide("plain")
    guest = image.build("cloud")
    with locked(_BUILD):
        disks = Disks(
            kernel.vmlinuz, _BUILD / "initramfs", _BUILD / "debian.ext4", _BUILD / "ours.ext4"
        )
        packages = sources.digest(" ".join((_SUITE, *_PACKAGES, *_LEFT_OUT)), ())
        _make(disks.debian, packages, _make_debian)
        inputs = sorted(_files(guest))
        ours = sources.digest(guest.kernel.release, inputs)
        _make(disks.ours, ours, lambda disk: _make_ours(disk, guest))
        disks.initramfs.write_bytes(archive(dict(_initramfs(kernel))))
    return disks


def _files(guest: image.Image) -> Iterator[Path]:
    """Yield the files that decide what is on our disk."""
    yield from (Path(__file__), guest.initramfs, guest.kernel.vmlinuz)
    for folder in (*(_ROOT / name for name in _INSTALLED), _HERE / "files"):
        found = folder.rglob("*") if folder.is_dir() else (folder,)
        yield from (path for path in found if path.is_file() and "__pycache__" not in path.parts)


def _make(disk: Path, wanted: str, make: Callable[[Path], None]) -> None:
    """Make ``disk``, unless it exists and was made from what is ``wanted`` now."""
    stamp = disk.with_suffix(".stamp")
    if stamp.exists() and stamp.read_text() == wanted:
        return
    stamp.unlink(missing_ok=True)
    make(disk)
    stamp.write_text(wanted)


def _make_debian(disk: Path) -> None:
    _progress(f"making a Debian with {', '.join(_PACKAGES)} (about a minute)")
    tree = _emptied("debian")
    site = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    known = _run(("apt-get", "indextargets", "--format", site, "Created-By: Packages"), "ask apt")
    ours = {line for line in known.decode().splitlines() if f" {_SUITE}" in line}
    if not ours:
        raise BuildError(f"apt knows no packages of {_SUITE}: apt-get update")
    options = (
        *("--variant=minbase", "--quiet", f"--include={','.join(_PACKAGES)}"),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT),
    )
    _run(
        (*_as_root(), "mmdebstrap", *options, _SUITE, tree, "-"),
        "make a Debian",
        stdin="\n".join(sorted(ours)).encode(),
    )
    _pack(tree, disk)


def _make_ours(disk: Path, guest: image.Image) -> None:
    _progress("installing what is to be tested (half a minute)")
    tree = _emptied("ours")
    shutil.copytree(_HERE / "files", tree, dirs_exist_ok=True)
    _run(
        ("make", "-C", _ROOT, "install", f"DESTDIR={tree}", "PREFIX=/usr"),
        "run `make install`",
    )
    (tree / "guest").mkdir()
    shutil.copy2(guest.initramfs, tree / "guest" / "initramfs")
    shutil.copy2(guest.kernel.vmlinuz, tree / "guest" / "vmlinuz")
    shutil.copy2(_ROOT / "guest/image/agent", tree / "usr/libexec/agent")
    _pack(tree, disk)


def _pack(tree: Path, disk: Path) -> None:
    """Make a file system of ``tree``, and remove ``tree``."""
    used = int(_run((*_as_root(), "du", "-sm", tree), "measure a folder").split()[0])
    disk.unlink(missing_ok=True)
    size = f"{used + used // 4 + 16}M"
    options = ("-q", "-O", "^has_journal", "-d", str(tree))
    _run((*_as_root(), "mkfs.ext4", *options, disk, size), f"make {disk.name}")
    _run((*_as_root(), "rm", "-rf", tree), "clean up")


def _initramfs(kernel: Kernel) -> Iterator[tuple[str, Entry]]:
    for path in (
        "bin",
        "dev",
        "proc",
        "mnt",
        "mnt/debian",
        "mnt/ours",
        "mnt/new",
        "root",
        "modules",
    ):
        yield path, Directory()
    yield "bin/busybox", File(_BUSYBOX.read_bytes(), 0o755)
    yield "init", File((_HERE / "init").read_bytes(), 0o755)
    modules = _with_dependencies(PACKAGES / "root/lib/modules" / kernel.release)
    for number, module in enumerate(modules):
        yield f"modules/{number:02}-{module.name}", File(module.read_bytes())


def _with_dependencies(folder: Path) -> list[Path]:
    """Return the kernel modules that we need, each after those that it needs."""
    known = {path.stem.replace("-", "_"): path for path in folder.rglob("*.ko")}
    ordered: dict[str, Path] = {}

    def add(name: str) -> None:
        module = known[name.replace("-", "_")]
        found = _DEPENDS.search(module.read_bytes())
        for needed in found[1].decode().split(",") if found and found[1] else ():
            add(needed)
        ordered.setdefault(module.stem, module)

    for name in (*_KERNEL_MODULES, "crc32c_generic"):
        add(name)
    return list(ordered.values())


def _emptied(name: str) -> Path:
    tree = _BUILD / name
    _run((*_as_root(), "rm", "-rf", tree), "clean up")
    tree.mkdir(parents=True)
    return tree


def _run(command: Sequence[str | Path], what: str, *, stdin: bytes | None = None) -> bytes:
    return tools.run(command, error=BuildError, what=what, stdin=stdin)


def _as_root() -> tuple[str, ...]:
    return () if os.geteuid() == 0 else ("sudo",)


def _progress(text: str) -> None:
    sys.stdout.write(f"systemd: {text}\n")
    sys.stdout.flush()


def main() -> int:
    """Build the disks; return the exit code."""
    try:
        build()
    except GuestError as error:
        sys.stderr.write(f"systemd: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
