"""Build the small guest: kernel modules, workload programs and initramfs.

    python -m guest.image.build --flavour cloud --flavour plain

Everything lands in ``build/guest/<flavour>``; what did not change is not built again.
"""

import argparse
import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from guest.image import packages, vmlinux
from guest.image.cpio import Directory, Entry, File, Link, archive
from guest.image.errors import BuildError, GuestError
from guest.image.packages import Kernel
from guest.image.paths import BUILD, FLAVOURS, GUEST, Flavour, locked
from guest.image.tools import progress, run

__all__ = ("Image", "build", "load")

_SOURCES = ("module", "workload")
_SOURCE_SUFFIXES = (".S", ".c", ".h", ".py")
_SOURCE_NAMES = ("Kbuild", "Makefile", "agent", "init")
_BUSYBOX = Path("/bin/busybox")
_DIRECTORIES = ("bin", "dev", "lib", "lib/modules", "proc", "root", "run", "sys")


@dataclass(frozen=True, slots=True)
class Image:
    """What stands in ``build/guest/<flavour>``."""

    flavour: Flavour
    kernel: Kernel

    @property
    def directory(self) -> Path:
        return BUILD / self.flavour

    @property
    def vmlinux(self) -> Path:
        """The kernel as an ELF file: sections, but no symbols."""
        return self.directory / "vmlinux"

    @property
    def initramfs(self) -> Path:
        return self.directory / "initramfs"

    @property
    def modules(self) -> dict[str, Path]:
        """Our modules with their debug information, by name: ``optpoline``, ``optbench``."""
        return {path.stem: path for path in sorted((self.directory / "modules").glob("*.ko"))}

    @property
    def stamp(self) -> Path:
        """Written last: the digest of what the image was built from."""
        return self.directory / "stamp"


def load(flavour: Flavour) -> Image:
    """Return the image that was built last.

    :raise BuildError: where there is none.
    """
    image = Image(flavour, packages.provide(flavour))
    with locked(image.directory):
        if not image.stamp.exists():
            raise BuildError(f"the {flavour} guest was not built yet: make image")
    return image


def build(flavour: Flavour) -> Image:
    """Return an image that is up to date with its sources.

    :raise GuestError: where a package cannot be had or a tool fails.
    """
    image = Image(flavour, packages.provide(flavour))
    with locked(image.directory):
        wanted = _digest(image)
        if image.stamp.exists() and image.stamp.read_text() == wanted:
            return image
        image.stamp.unlink(missing_ok=True)
        progress(f"building the {flavour} guest, {image.kernel.release} (half a minute)")
        image.vmlinux.write_bytes(vmlinux.extract(image.kernel.vmlinuz.read_bytes()))
        sources = _copy_sources(image)
        _build_programs(image, sources)
        _build_modules(image, sources)
        image.initramfs.write_bytes(archive(_tree(image)))
        image.stamp.write_text(wanted)
    return image


def _digest(image: Image) -> str:
    inputs = (_BUSYBOX, *_files(GUEST / "image"), *_files(*(GUEST / name for name in _SOURCES)))
    digest = hashlib.sha256(image.kernel.release.encode())
    for path in inputs:
        digest.update(f"{path} {path.stat().st_mode}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _files(*directories: Path) -> list[Path]:
    """Return the sources in ``directories``, but nothing that a build in place left there."""
    return sorted(
        path
        for directory in directories
        for path in directory.rglob("*")
        if (path.suffix in _SOURCE_SUFFIXES or path.name in _SOURCE_NAMES)
        and not path.name.endswith(".mod.c")
    )


def _copy_sources(image: Image) -> Path:
    """Copy the sources, so that nothing is built among them; return the folder of the copies."""
    copies = image.directory / "src"
    shutil.rmtree(copies, ignore_errors=True)
    for source in _files(*(GUEST / name for name in _SOURCES)):
        copy = copies / source.relative_to(GUEST)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, copy)
    return copies


def _build_modules(image: Image, sources: Path) -> None:
    """Fill ``modules/`` with what the Kbuild files under ``sources`` name."""
    modules = _emptied(image.directory / "modules")
    jobs = f"-j{os.cpu_count()}"
    for kbuild in sorted(sources.glob("*/Kbuild")):
        run(
            ("make", jobs, "-C", image.kernel.headers, f"M={kbuild.parent}", "modules"),
            error=BuildError,
            what=f"build the modules in guest/{kbuild.parent.name}",
        )
        for module in kbuild.parent.glob("*.ko"):
            shutil.copy2(module, modules)


def _build_programs(image: Image, sources: Path) -> None:
    """Fill ``programs/`` with the static programs of the workload."""
    programs = _emptied(image.directory / "programs")
    if (sources / "workload" / "Makefile").exists():
        run(
            ("make", "-C", sources / "workload", f"O={programs}", "programs"),
            error=BuildError,
            what="build the programs in guest/workload",
        )


def _emptied(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


def _tree(image: Image) -> dict[str, Entry]:
    """Return what the guest finds in its root."""
    tree: dict[str, Entry] = {path: Directory() for path in _DIRECTORIES}
    tree["tmp"] = Directory(0o1777)
    for name in ("init", "agent"):
        tree[name] = File((GUEST / "image" / name).read_bytes(), 0o755)
    tree["bin/busybox"] = File(_BUSYBOX.read_bytes(), 0o755)
    applets = run((_BUSYBOX, "--list"), error=BuildError, what="list busybox's commands")
    for applet in applets.decode().split():
        if applet != "busybox":
            tree[f"bin/{applet}"] = Link("busybox")
    for program in sorted((image.directory / "programs").iterdir()):
        if os.access(program, os.X_OK):
            tree[f"bin/{program.name}"] = File(program.read_bytes(), 0o755)
    stripped = _emptied(image.directory / "stripped")
    for module in image.modules.values():
        # Debug information is most of a module.
        run(
            ("strip", "--strip-debug", "-o", stripped / module.name, module),
            error=BuildError,
            what=f"strip {module.name}",
        )
        tree[f"lib/modules/{module.name}"] = File((stripped / module.name).read_bytes())
    return tree


def main() -> int:
    """Build the flavours that the command line names; return an exit code."""
    parser = argparse.ArgumentParser(description="Build the small guest.")
    parser.add_argument("--flavour", action="append", choices=FLAVOURS, help="default: both")
    arguments = parser.parse_args()
    try:
        for flavour in arguments.flavour or FLAVOURS:
            build(flavour)
    except GuestError as error:
        sys.stderr.write(f"image: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
