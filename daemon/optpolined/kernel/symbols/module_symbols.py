"""The symbols of a module that matter here, from its ELF symbol table in the guest's memory.

Layout: ``Elf64_Sym``, elf(5).  The module loader keeps the table of what stays after init, with
absolute values (kernel/module/kallsyms.c, add_kallsyms()).
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import TranslationError
from optpolined.kernel.module.module_list import GuestModule
from optpolined.kernel.paging import PAGE_SIZE, AddressSpace
from optpolined.kernel.symbols.kallsyms import SYMBOL_NAME_MAX

__all__ = ("RUN_SYMBOL", "ModuleSymbols", "module_symbols")

RUN_SYMBOL: Final = "__optpoline_sites"
"""The local symbol where the declarations of an object file begin."""

_STRINGS_SIZE_MAX = 4 << 20
_FUNCTION_SIZE = 256 + SYMBOL_NAME_MAX  # the most that a function takes up in our memory
_CODE_TYPES = (0, 2)  # STT_NOTYPE, which assembly often leaves, and STT_FUNC
_STT_OBJECT = 1
_RUN_NAME = re.escape(RUN_SYMBOL.encode() + b"\0")
_RUNS_MAX = 1 << 13  # of one module; each takes up some 100 bytes in our memory

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


@dataclass(frozen=True, slots=True)
class ModuleSymbols:
    """What a module's symbol table says.

    ``functions`` are those in its text, as (start, size, name) in order; ``runs`` where the records
    of each of its object files begin (optsites.py).  ``cost`` is in bytes: those that were read,
    and those that the functions take up here.
    """

    functions: Sequence[tuple[int, int, str]]
    runs: Sequence[GuestVirtual]
    cost: int


def module_symbols(space: AddressSpace, module: GuestModule, bytes_left: int) -> ModuleSymbols:
    """Read the symbols of ``module``.

    There are none where the table is not mapped or would cost more than ``bytes_left``.

    :raise QemuError: the guest's memory cannot be read at all.
    """
    table_size = module.nr_symbols * _SYMBOL.itemsize
    if table_size > bytes_left:
        return ModuleSymbols((), (), 0)
    try:
        symbols = np.frombuffer(space.read(module.symtab, table_size), _SYMBOL)
    except TranslationError:
        return ModuleSymbols((), (), table_size)
    symbols = symbols[(symbols["name"] > 0) & (symbols["name"] < _STRINGS_SIZE_MAX)]
    kinds = symbols["info"] & 0xF
    in_text = (symbols["value"] >= np.uint64(module.text)) & (
        symbols["value"] - np.uint64(module.text) < np.uint64(module.size)
    )
    code = symbols[in_text & np.isin(kinds, _CODE_TYPES)]
    data = symbols[~in_text & (kinds == _STT_OBJECT)]
    if not len(code) + len(data):
        return ModuleSymbols((), (), table_size)
    last = max(int(some["name"].max()) for some in (code, data) if len(some))
    cost = table_size + last + SYMBOL_NAME_MAX + len(code) * _FUNCTION_SIZE
    if cost > bytes_left:
        return ModuleSymbols((), (), table_size)
    strings = _read_mapped(space, module.strtab, last + SYMBOL_NAME_MAX)
    named = zip(
        code["value"].tolist(),
        code["size"].tolist(),
        (_string(strings, offset) for offset in code["name"].tolist()),
        strict=True,
    )
    named_so = [match.start() for match in re.finditer(_RUN_NAME, strings)]
    found = data["value"][np.isin(data["name"], named_so)][:_RUNS_MAX]
    runs = [GuestVirtual(value) for value in found.tolist()]
    return ModuleSymbols(_cut(sorted(named), module.text + module.size), runs, cost)


def _cut(symbols: list[tuple[int, int, str]], end: int) -> list[tuple[int, int, str]]:
    """Return one function an address; where a size is missing it reaches to the next one."""
    by_start = itertools.groupby(symbols, key=lambda symbol: symbol[0])
    # Of several at an address, the last is the one with the largest size.
    functions = [list(group)[-1] for _, group in by_start]
    edges = [*(start for start, _, _ in functions), end]
    return [
        (start, min(size, end - start) if size else following - start, name)
        for (start, size, name), following in zip(functions, edges[1:], strict=True)
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
