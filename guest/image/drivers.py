"""Builds drivers of Debian's kernel again, from Debian's source package, with our gcc plugin.

guest/drivers/Kbuild names them: veth, fuse and overlay.
"""

import shutil
from pathlib import Path

from guest.image import kbuild, packages, sources
from guest.image.packages import Kernel
from guest.image.tools import progress

__all__ = ("DRIVERS", "build")

DRIVERS = ("fuse", "overlay", "veth")

_SOURCES = ("drivers/net/veth.c", "fs/fuse", "fs/overlayfs")
# What the modules depend on, besides the kernel's release.
_INPUTS = ("drivers", "gcc-plugin", "include")


def build(kernel: Kernel, directory: Path) -> list[Path]:
    """Return the drivers' modules; build them in ``directory`` if they are not up to date.

    :raise GuestError: the source package cannot be downloaded, or the build fails or warns.
    """
    modules = [directory / f"{name}.ko" for name in DRIVERS]
    stamp = directory / "stamp"
    wanted = sources.digest(kernel.release, [Path(__file__), *sources.files(*_INPUTS)])
    if stamp.exists() and stamp.read_text() == wanted:
        return modules
    tree = packages.provide_sources(kernel, _SOURCES)
    progress(f"building {', '.join(DRIVERS)} with the gcc plugin (half a minute)")
    shutil.rmtree(directory, ignore_errors=True)
    folder = sources.copied(directory / "src", "drivers") / "drivers"
    shutil.copytree(tree, folder, dirs_exist_ok=True)
    built = kbuild.build_modules(
        kernel, folder, what="build the drivers in guest/drivers", with_plugin=True
    )
    for module in built:
        if module.stem in DRIVERS:
            shutil.copy2(module, directory)
    shutil.rmtree(folder)
    stamp.write_text(wanted)
    return modules
