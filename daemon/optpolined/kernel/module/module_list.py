"""The loaded modules, as the guest's module listed them.

The list is as of the last ``RequestOp.MODULES``; ``HeaderStatus.modules_generation`` tells whether
modules have come or gone since.
"""

import ctypes
from dataclasses import dataclass
from typing import Final

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import ModuleListError, TranslationError
from optpolined.kernel.module import abi
from optpolined.kernel.module.header import Header, read_status
from optpolined.kernel.paging import AddressSpace

__all__ = ("MODULE_SYMBOLS_MAX", "GuestModule", "read_module_names", "read_modules")

MODULE_SYMBOLS_MAX: Final = 200_000
"""The most symbols of one module that are looked at; i915 has about 10,000."""

_TEXT_START = (1 << 64) - (2 << 30)
_TEXT_SIZE_MAX = 512 << 20
_ALL_TEXT_MAX = 128 << 20  # of all modules, without our arena


@dataclass(frozen=True, slots=True)
class GuestModule:
    """A loaded module: where its code is, ``size`` in bytes, and its ``Elf64_Sym[nr_symbols]``."""

    name: str
    text: GuestVirtual
    size: int
    symtab: GuestVirtual
    strtab: GuestVirtual
    nr_symbols: int


def read_modules(space: AddressSpace, header: Header) -> list[GuestModule]:
    """Return the modules by ascending address, without those whose text makes no sense.

    :raise ModuleGoneError: the header is no longer there.
    :raise HeaderError, ModuleListError: the list makes no sense, or changed while it was read.
    """
    modules = [module for raw in _table(space, header) if (module := _module(raw)) is not None]
    if sum(_text_size(module, header) for module in modules) > _ALL_TEXT_MAX:
        raise ModuleListError(f"the guest's modules claim more than {_ALL_TEXT_MAX} bytes of text")
    return sorted(modules, key=lambda module: module.text)


def read_module_names(space: AddressSpace, header: Header) -> list[str]:
    """Return the names of all modules, of those too whose init still runs or that have no text.

    :raise ModuleGoneError, HeaderError, ModuleListError: as :func:`read_modules`.
    """
    return [_name(bytes(raw.name)) for raw in _table(space, header)]


def _table(space: AddressSpace, header: Header) -> list[abi.ModuleLayout]:
    before = read_status(space, header)
    size = ctypes.sizeof(abi.ModuleLayout)
    try:
        data = space.read(header.modules, before.modules_count * size)
    except TranslationError as error:
        raise ModuleListError("the guest's table of modules is not mapped") from error
    after = read_status(space, header)
    if after != before:
        raise ModuleListError("the guest's table of modules changed while it was read")
    return [abi.ModuleLayout.from_buffer_copy(data, start) for start in range(0, len(data), size)]


def _text_size(module: GuestModule, header: Header) -> int:
    own = module.text <= header.arena < module.text + module.size
    return header.arena - module.text if own else module.size


def _module(raw: abi.ModuleLayout) -> GuestModule | None:
    if not 0 < raw.text_size <= _TEXT_SIZE_MAX:
        return None
    if not _TEXT_START <= raw.text <= (1 << 64) - raw.text_size:
        return None
    return GuestModule(
        name=_name(bytes(raw.name)),
        text=GuestVirtual(raw.text),
        size=raw.text_size,
        symtab=GuestVirtual(raw.symtab),
        strtab=GuestVirtual(raw.strtab),
        nr_symbols=min(raw.nr_symbols, MODULE_SYMBOLS_MAX),
    )


def _name(raw: bytes) -> str:
    """Return a name fit for logs, labels and terminals, whatever the guest wrote."""
    return "".join(
        chr(byte) if chr(byte).isascii() and (chr(byte).isalnum() or byte in b"_-.") else "?"
        for byte in raw.split(b"\0", 1)[0]
    )
