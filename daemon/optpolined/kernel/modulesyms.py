"""The functions of a module, from its ELF symbol table in the guest's memory.

Layout: ``Elf64_Sym``, elf(5).  The module loader keeps the table of what stays after init, with
absolute values (kernel/module/kallsyms.c, add_kallsyms()).
"""

import itertools

import numpy as np

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import TranslationError
from optpolined.kernel.kallsyms import SYMBOL_NAME_MAX
from optpolined.kernel.modules import GuestModule
from optpolined.kernel.paging import PAGE_SIZE, AddressSpace

__all__ = ("module_functions",)

_STRINGS_SIZE_MAX = 4 << 20
_FUNCTION_SIZE = 256 + SYMBOL_NAME_MAX  # the most that a function takes up in our memory
_TYPES = (0, 2)  # STT_NOTYPE, which assembly often leaves, and STT_FUNC

_SYMBOL = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("section", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)


def module_functions(
    space: AddressSpace, module: GuestModule, bytes_left: int
) -> tuple[list[tuple[int, int, str]], int]:
    """The functions in ``module``'s text as (start, size, name) in order, and what they cost.

    The cost is in bytes: those that are read, and those that the functions take up here.  There are
    none where the table is not mapped or would cost more than ``bytes_left``.

    :raise QemuError: the guest's memory cannot be read at all.
    """
    table_size = module.nr_symbols * _SYMBOL.itemsize
    if table_size > bytes_left:
        return [], 0
    try:
        symbols = np.frombuffer(space.read(module.symtab, table_size), _SYMBOL)
    except TranslationError:
        return [], table_size
    symbols = symbols[
        (symbols["name"] > 0)
        & (symbols["name"] < _STRINGS_SIZE_MAX)
        & np.isin(symbols["info"] & 0xF, _TYPES)
        & (symbols["value"] >= np.uint64(module.text))
        & (symbols["value"] - np.uint64(module.text) < np.uint64(module.size))
    ]
    if not len(symbols):
        return [], table_size
    strings_size = int(symbols["name"].max()) + SYMBOL_NAME_MAX
    cost = table_size + strings_size + len(symbols) * _FUNCTION_SIZE
    if cost > bytes_left:
        return [], table_size
    strings = _read_mapped(space, module.strtab, strings_size)
    named = zip(
        symbols["value"].tolist(),
        symbols["size"].tolist(),
        (_string(strings, offset) for offset in symbols["name"].tolist()),
        strict=True,
    )
    return _cut(sorted(named), module.text + module.size), cost


def _cut(symbols: list[tuple[int, int, str]], end: int) -> list[tuple[int, int, str]]:
    """One function an address; where a size is missing it reaches to the next one."""
    by_start = itertools.groupby(symbols, key=lambda symbol: symbol[0])
    # Of several at an address, the last is the one with the largest size.
    functions = [list(group)[-1] for _, group in by_start]
    ends = [start for start, _, _ in functions[1:]] + [end]
    return [
        (start, min(size, end - start) if size else following - start, name)
        for (start, size, name), following in zip(functions, ends, strict=True)
    ]


def _string(strings: bytes, offset: int) -> str:
    raw = strings[offset : offset + SYMBOL_NAME_MAX].split(b"\0", 1)[0]
    text = raw.decode("latin-1")
    return text if text.isascii() and text.isprintable() else "?"


def _read_mapped(space: AddressSpace, address: GuestVirtual, size: int) -> bytes:
    """``size`` bytes, with zeros for the pages that are not mapped: the size is a guess."""
    pieces = []
    while size > 0:
        here = min(size, PAGE_SIZE - address % PAGE_SIZE)
        try:
            pieces.append(space.read(address, here))
        except TranslationError:
            pieces.append(bytes(here))
        address = GuestVirtual(address + here)
        size -= here
    return b"".join(pieces)
