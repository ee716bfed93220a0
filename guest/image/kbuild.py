"""Build kernel modules against the headers of a kernel, and the gcc plugin for some of them."""

import os
from pathlib import Path

from guest.image.errors import BuildError
from guest.image.packages import Kernel
from guest.image.paths import GUEST, PLUGIN, locked
from guest.image.tools import run

__all__ = ("build_modules", "plugin")


def build_modules(kernel: Kernel, folder: Path, *, what: str, with_plugin: bool) -> list[Path]:
    """Build what the Kbuild file in ``folder`` names; return the modules.

    :raise BuildError: a tool fails, or gcc, objtool or modpost warns.
    """
    flags = (f"KCFLAGS=-fplugin={plugin()}",) if with_plugin else ()
    run(
        ("make", f"-j{os.cpu_count()}", "-C", kernel.headers, f"M={folder}", *flags, "modules"),
        error=BuildError,
        what=what,
        warnings_fail=True,
    )
    return sorted(folder.rglob("*.ko"))


def plugin() -> Path:
    """Return our gcc plugin, up to date with its sources.

    :raise BuildError: it cannot be built.
    """
    with locked(PLUGIN):
        run(
            ("make", "-C", GUEST / "gcc-plugin", f"O={PLUGIN}"),
            error=BuildError,
            what="build the gcc plugin (gcc's plugin headers are in gcc-12-plugin-dev)",
        )
    return PLUGIN / "optpoline.so"
