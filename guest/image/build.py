"""Build the small guest: kernel modules, workload programs and initramfs.

    python -m guest.image.build --flavour cloud --flavour plain

The result is in ``build/guest/<flavour>``; what did not change is not built again.
"""

import argparse
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from guest.image import drivers, kbuild, kernel, packages, sources, vmlinux
from guest.image.cpio import Directory, Entry, File, Link, archive
from guest.image.errors import BuildError, GuestError
from guest.image.packages import Kernel
from guest.image.paths import BUILD, FLAVOURS, GUEST, Flavour, locked
from guest.image.tools import progress, run

__all__ = ("Image", "build", "load")

_SOURCES = ("include", "module", "seed", "workload")
_INPUTS = ("image", "drivers", "gcc-plugin", *_SOURCES)
_MODULES = ("module", "workload")
_BUSYBOX = Path("/bin/busybox")
_DIRECTORIES = (
    *("bin", "dev", "lib", "lib/modules", "lib/modules/seed"),
    *("proc", "root", "run", "sys"),
)


@dataclass(frozen=True, slots=True)
class Image:
    """The files in ``build/guest/<flavour>``."""

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
    def seed_modules(self) -> dict[str, Path]:
        """The same for modules that our gcc plugin made inline sites in: ``optseed``, and in the
        cloud guest ``veth``, ``fuse`` and ``overlay``.  They are in the guest's /lib/modules/seed.
        """
        return {path.stem: path for path in sorted((self.directory / "seed").glob("*.ko"))}

    @property
    def stamp(self) -> Path:
        """Written last: the digest of what the image was built from."""
        return self.directory / "stamp"


def load(flavour: Flavour) -> Image:
    """Return the image that was built last.

    :raise BuildError: no image was built.
    """
    image = Image(flavour, _kernel(flavour))
    with locked(image.directory):
        if not image.stamp.exists():
            target = "guest-kernel" if flavour == "plugin" else "image"
            raise BuildError(f"the {flavour} guest was not built yet: make {target}")
    return image


def build(flavour: Flavour) -> Image:
    """Return an image that is up to date with its sources.

    :raise GuestError: a package cannot be downloaded, or a tool fails.
    """
    image = Image(flavour, _kernel(flavour))
    with locked(image.directory):
        inputs = (_BUSYBOX, image.kernel.vmlinuz, *sources.files(*_INPUTS))
        wanted = sources.digest(image.kernel.release, inputs)
        if image.stamp.exists() and image.stamp.read_text() == wanted:
            return image
        image.stamp.unlink(missing_ok=True)
        progress(f"building the {flavour} guest, {image.kernel.release} (half a minute)")
        image.vmlinux.write_bytes(vmlinux.extract(image.kernel.vmlinuz.read_bytes()))
        copies = sources.copied(image.directory / "src", *_SOURCES)
        _build_programs(image, copies)
        _build_modules(image, copies)
        _build_seed_modules(image, copies)
        image.initramfs.write_bytes(archive(_tree(image)))
        image.stamp.write_text(wanted)
    return image


def _kernel(flavour: Flavour) -> Kernel:
    return kernel.load() if flavour == "plugin" else packages.provide(flavour)


def _build_modules(image: Image, copies: Path) -> None:
    """Fill ``modules/``."""
    modules = _emptied(image.directory / "modules")
    for name in _MODULES:
        for module in kbuild.build_modules(
            image.kernel,
            copies / name,
            what=f"build the modules in guest/{name}",
            with_plugin=False,
        ):
            shutil.copy2(module, modules)


def _build_seed_modules(image: Image, copies: Path) -> None:
    """Fill ``seed/``."""
    built = kbuild.build_modules(
        image.kernel,
        copies / "seed",
        what="build the module in guest/seed",
        with_plugin=True,
    )
    if image.flavour == "cloud":
        built += drivers.build(image.kernel, image.directory / "drivers")
    modules = _emptied(image.directory / "seed")
    for module in built:
        shutil.copy2(module, modules)


def _build_programs(image: Image, copies: Path) -> None:
    """Fill ``programs/`` with the static programs of the workload."""
    programs = _emptied(image.directory / "programs")
    run(
        ("make", "-C", copies / "workload", f"O={programs}", "programs"),
        error=BuildError,
        what="build the programs in guest/workload",
    )


def _emptied(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


def _tree(image: Image) -> dict[str, Entry]:
    """Return the entries of the guest's root folder."""
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
    for folder, modules in (("", image.modules), ("seed/", image.seed_modules)):
        for module in modules.values():
            # Debug information is most of a module.
            run(
                ("strip", "--strip-debug", "-o", stripped / module.name, module),
                error=BuildError,
                what=f"strip {module.name}",
            )
            small = (stripped / module.name).read_bytes()
            tree[f"lib/modules/{folder}{module.name}"] = File(small)
    return tree


def main() -> int:
    """Build the flavours that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description="Build the small guest.")
    parser.add_argument(
        "--flavour",
        action="append",
        choices=(*FLAVOURS, "plugin"),
        help="default: the two of Debian's kernels",
    )
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
