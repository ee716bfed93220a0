"""Builds a kernel with our gcc plugin: each of its indirect calls is an inline site.

    python -m guest.image.kernel        what `make guest-kernel` runs

It is built from Debian's source package with the configuration of Debian's cloud kernel, made
small by kernel.config; it has no modules.  optpoline_sites.patch is the only change of its
source.  The result is in ``build/kernel``.  A build that was interrupted goes on where it
stopped; a build whose plugin, configuration or source package changed starts over.

The plugin is given to every compilation that is the kernel's, and makes sites where gcc is told to
call through external thunks.  The parts that run before the kernel or in user mode, which are the
boot wrapper, the realmode trampoline and the vDSO, are not: they need no exception here.  Functions
that the kernel marks noinstr get sites too: the daemon leaves these alone because of their
address, as it does on a kernel without the plugin.
"""

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

from guest.image import kbuild, packages
from guest.image.errors import BuildError, GuestError
from guest.image.packages import Kernel
from guest.image.paths import GUEST, KERNEL, locked
from guest.image.tools import follow, progress, run

__all__ = ("build", "configuration", "load", "options", "unmet")

_TREE = KERNEL / "linux"
_LOG = KERNEL / "log"
_PLUGIN = KERNEL / "optpoline.so"
# The digest of what the tree was made from, written when it is ready to be built.
_BEGUN = KERNEL / "begun"
# The same, written last.
_BUILT = KERNEL / "built"
_CHANGES = GUEST / "image" / "kernel.config"
_PATCH = GUEST / "image" / "optpoline_sites.patch"

_OPTION = re.compile(r"^(?:# )?(CONFIG_\w+)(?:=| is not set$)", re.MULTILINE)
_MODULE = re.compile(r"^(CONFIG_\w+)=m$", re.MULTILINE)
_OBJECT = re.compile(r"^  (?:CC|AS) .*\.o$", re.MULTILINE)
_OBJECTS = 1550
_OBJECTS_A_LINE = 100
# A line of nm -S: address, size, type, name.  The linker calls vmlinux's .rodata writable.
_RUN = re.compile(rb"^\w+ (\w+) [dr] __optpoline_sites$", re.MULTILINE)
_HEADER_SIZE = _RECORD_SIZE = 16


def load() -> Kernel:
    """Return the kernel that was built last.

    :raise BuildError: no kernel was built.
    """
    with locked(KERNEL):
        if not _BUILT.exists():
            raise BuildError("the kernel with the gcc plugin was not built yet: make guest-kernel")
        release = (_TREE / "include/config/kernel.release").read_text().strip()
    return Kernel(release, vmlinuz=_TREE / "arch/x86/boot/bzImage", headers=_TREE)


def build() -> Kernel:
    """Return a kernel that is up to date with its configuration, its sources and the plugin.

    :raise GuestError: a package cannot be downloaded, or a tool fails or warns.
    """
    base = packages.provide("cloud")
    plugin = kbuild.plugin()
    with locked(KERNEL):
        wanted = _digest(base, plugin)
        if not _BUILT.exists() or _BUILT.read_text() != wanted:
            _BUILT.unlink(missing_ok=True)
            if not _BEGUN.exists() or _BEGUN.read_text() != wanted:
                _begin(base, plugin)
                _BEGUN.write_text(wanted)
            _make()
            _count_sites()
            _BUILT.write_text(wanted)
    return load()


def configuration(base: str, changes: str) -> str:
    """Return the .config ``base`` without modules, and with the lines of ``changes`` instead.

    kbuild drops the options that depend on a dropped one when it reads the result.
    """
    changed = options(changes)
    lines = _MODULE.sub(r"# \1 is not set", base).splitlines()
    kept = (line for line in lines if options(line).isdisjoint(changed))
    return "\n".join((*kept, changes))


def unmet(config: str, changes: str) -> list[str]:
    """Return the lines of ``changes`` that kbuild left out of ``config``.

    An option that is off may be absent.
    """
    lines = set(config.splitlines())
    known = options(config)
    return [
        line
        for line in changes.splitlines()
        if line not in lines and (named := options(line))
        if line.startswith("CONFIG_") or not named.isdisjoint(known)
    ]


def options(config: str) -> set[str]:
    """Return the options that a .config sets, or says are not set."""
    return set(_OPTION.findall(config))


def _digest(base: Kernel, plugin: Path) -> str:
    inputs = (plugin, _CHANGES, _PATCH, packages.config(base))
    summed = hashlib.sha256(packages.source_version(base).encode())
    for path in inputs:
        summed.update(hashlib.sha256(path.read_bytes()).digest())
    return summed.hexdigest()


def _begin(base: Kernel, plugin: Path) -> None:
    """Make a source tree that is ready for the build."""
    _BEGUN.unlink(missing_ok=True)
    _LOG.unlink(missing_ok=True)
    # Its own copy, which stays as it is while the kernel is built.
    shutil.copy2(plugin, _PLUGIN)
    packages.unpack_sources(base, _TREE)
    run(
        ("patch", "--strip=1", "--fuzz=0", f"--input={_PATCH}"),
        error=BuildError,
        what=f"apply {_PATCH.name} to the kernel's source",
        cwd=_TREE,
    )
    changes = _CHANGES.read_text()
    config = _TREE / ".config"
    config.write_text(configuration(packages.config(base).read_text(), changes))
    run(("make", "olddefconfig"), error=BuildError, what="configure the kernel", cwd=_TREE)
    refused = unmet(config.read_text(), changes)
    if refused:
        raise BuildError(f"the kernel's configuration does not take {', '.join(refused)}")


def _make() -> None:
    objects = len(_OBJECT.findall(_LOG.read_text())) if _LOG.exists() else 0
    progress(f"building the kernel with the gcc plugin (ten minutes on two idle CPUs; {_LOG})")

    def count(line: str) -> None:
        nonlocal objects
        if _OBJECT.match(line):
            objects += 1
            if objects % _OBJECTS_A_LINE == 0:
                progress(f"{objects} objects of about {_OBJECTS}")

    follow(
        (
            *("nice", "make", f"-j{os.cpu_count()}", f"KCFLAGS=-fplugin={_PLUGIN}"),
            *("bzImage", "modules"),
        ),
        error=BuildError,
        what="build the kernel",
        cwd=_TREE,
        log=_LOG,
        each=count,
    )


def _count_sites() -> None:
    """Say how many sites the kernel has.

    :raise BuildError: it has none, so the plugin or the patch is wrong.
    """
    symbols = run(
        ("nm", "--print-size", _TREE / "vmlinux"),
        error=BuildError,
        what="read the kernel's symbols",
    )
    sizes = [int(size, 16) for size in _RUN.findall(symbols)]
    if not sizes:
        raise BuildError("the kernel was built, but no site is recorded in it")
    records = sum(size - _HEADER_SIZE for size in sizes) // _RECORD_SIZE
    progress(f"the kernel has {records:,} inline sites, in {len(sizes)} of its objects")


def main() -> int:
    """Build the kernel; return the exit code."""
    try:
        build()
    except GuestError as error:
        sys.stderr.write(f"kernel: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
