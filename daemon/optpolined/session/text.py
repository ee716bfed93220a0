"""The guest's code before and after: invariant 5, byte by byte."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import TranslationError
from optpolined.kernel.module.attachment import Header
from optpolined.kernel.module.module_list import GuestModule
from optpolined.kernel.paging import AddressSpace
from optpolined.kernel.symbols.symbols import Symbols

__all__ = ("TextRegion", "differences", "read_text", "text_regions")

_SHOWN_DIFFERENCES = 8


@dataclass(frozen=True, slots=True)
class TextRegion:
    """Executable code of the kernel (module ``None``) or of one module; ``size`` in bytes."""

    base: GuestVirtual
    size: int
    module: str | None


def text_regions(
    symbols: Symbols, modules: Iterable[GuestModule], header: Header
) -> list[TextRegion]:
    """The kernel's text, then each module's; the arena is not text that anybody built.

    :raise SymbolsError: the kernel does not name the bounds of its text.
    """
    start, end = symbols.section("_stext", "_etext")
    regions = [TextRegion(start, end - start, None)]
    for module in modules:
        size = module.size
        if module.text <= header.arena < module.text + size:
            size = header.arena - module.text
        regions.append(TextRegion(module.text, size, module.name))
    return regions


def read_text(space: AddressSpace, regions: Iterable[TextRegion]) -> dict[TextRegion, bytes]:
    """Read each region whole; one that is not mapped (its module has just gone) is left out."""
    texts = {}
    for region in regions:
        try:
            texts[region] = space.read(region.base, region.size)
        except TranslationError:
            continue
    return texts


def differences(
    before: Mapping[TextRegion, bytes],
    after: Mapping[TextRegion, bytes],
    name: Callable[[GuestVirtual], str],
) -> list[str]:
    """Where the text is not what it was, a line for each run of bytes, the first few of them.

    A module that is there only before or only after is no difference: it was loaded or unloaded.
    """
    lines = []
    for region, old in before.items():
        new = after.get(region)
        if new is None or new == old:
            continue
        changed = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8))
        for run in np.split(changed, np.flatnonzero(np.diff(changed) > 8) + 1):
            first, last = int(run[0]), int(run[-1]) + 1
            lines.append(
                f"{name(GuestVirtual(region.base + first))}: "
                f"{old[first:last].hex(' ')} became {new[first:last].hex(' ')}"
            )
    hidden = len(lines) - _SHOWN_DIFFERENCES
    return lines[:_SHOWN_DIFFERENCES] + ([f"and {hidden} more"] if hidden > 0 else [])
