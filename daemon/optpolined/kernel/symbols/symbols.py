"""Names for addresses, and the functions of the kernel and its modules.

symbols = Symbols.load(attachment.space, attachment.vmcoreinfo)
symbols.set_modules(attachment.space, read_modules(attachment.space, attachment.header))
symbols.name(target)        # "tcp_v4_rcv", "veth_xmit [veth]", "0xffffffffc0000000"
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import SymbolsError
from optpolined.kernel.module.module_list import GuestModule
from optpolined.kernel.paging import AddressSpace
from optpolined.kernel.symbols.module_symbols import RUN_SYMBOL, module_symbols
from optpolined.kernel.symbols.site_name import SiteName
from optpolined.kernel.symbols.sources import read_kernel_symbols
from optpolined.kernel.vmcoreinfo import Vmcoreinfo

__all__ = ("Function", "Symbols")

_TEXT_SECTIONS = (("_stext", "_etext"), ("_sinittext", "_einittext"))
# The linker script's marks (include/asm-generic/vmlinux.lds.h): they share an address with the
# function that comes next, or with none.
_MARK = re.compile(r"_text|_[se]text|_[se]inittext|__\w+_text_(?:start|end)|__indirect_thunk_\w+")
_TEXT_SIZE_MAX = 128 << 20  # of each section; Debian's kernel has 15 MiB
_MODULE_BYTES_MAX = 256 << 20  # of symbol and string tables and what becomes of them, in all
_HIGHEST = (1 << 64) - 1


class Function(NamedTuple):
    """A function, or a part of one that has a symbol of its own (``.cold``); ``size`` in bytes.

    ``module`` is ``None`` for the kernel's own.
    """

    start: GuestVirtual
    size: int
    name: str
    module: str | None


class Symbols:
    """What is known by name.  Modules may be set anew at any time; the kernel's own stay."""

    def __init__(self, kernel: Iterable[tuple[int, str]]) -> None:
        """Take the kernel's symbols as (address, name).

        :raise SymbolsError: they do not say where the kernel's text is.
        """
        self._addresses: dict[str, list[GuestVirtual]] = {}
        symbols = sorted(kernel)
        for address, name in symbols:
            self._addresses.setdefault(name, []).append(GuestVirtual(address))
        self._kernel = self._kernel_functions(symbols)
        self._set(self._kernel)
        self._runs = list(self.addresses(RUN_SYMBOL))

    @classmethod
    def load(cls, space: AddressSpace, vmcoreinfo: Vmcoreinfo) -> "Symbols":
        """Read the kernel's symbols from the guest.

        :raise SymbolsError: no source of symbols can be used, or they do not say where the text is.
        :raise QemuError: the guest's memory cannot be read at all.
        """
        return cls(read_kernel_symbols(space, vmcoreinfo))

    def set_modules(self, space: AddressSpace, modules: Iterable[GuestModule]) -> None:
        """Replace the modules' functions by those of ``modules``.

        A module whose symbols cannot be read has no functions.

        :raise QemuError: the guest's memory cannot be read at all.
        """
        functions: list[Function] = []
        runs = list(self.addresses(RUN_SYMBOL))
        left = _MODULE_BYTES_MAX
        with space.snapshot() as pages:
            for module in modules:
                found = module_symbols(pages, module, left)
                functions += (
                    Function(GuestVirtual(start), length, name, module.name)
                    for start, length, name in found.functions
                )
                runs += found.runs
                left -= found.cost
        self._set([*self._kernel, *functions])
        self._runs = runs

    @property
    def runs(self) -> Sequence[GuestVirtual]:
        """Where the site records of each object file begin that was built with our gcc plugin."""
        return self._runs

    def function(self, address: GuestVirtual) -> Function | None:
        """Return the function that ``address`` is in."""
        position = int(np.searchsorted(self._starts, np.uint64(address), side="right")) - 1
        if position < 0:
            return None
        function = self._functions[position]
        return function if address - function.start < function.size else None

    def functions_in(self, start: GuestVirtual, size: int) -> Sequence[Function]:
        """Return the functions that begin in the ``size`` bytes from ``start`` on, in order."""
        ends = np.array([start, min(start + size, _HIGHEST)], np.uint64)
        first, last = np.searchsorted(self._starts, ends).tolist()
        return self._functions[first:last]

    def is_function_entry(self, address: GuestVirtual) -> bool:
        """Return whether a function begins at ``address``."""
        function = self.function(address)
        return function is not None and function.start == address

    def entries(self, name: str) -> Sequence[Function]:
        """Return the functions of this name, the kernel's and its modules'."""
        found = {function.start: function for function in self._named.get(name, ())}
        for address in self.addresses(name):  # an alias
            function = self.function(address)
            if function is not None and function.start == address:
                found[address] = function
        return list(found.values())

    def site_name(self, address: GuestVirtual) -> SiteName | None:
        """Return the function that ``address`` is in, and its offset; ``None`` outside functions.

        The entry of a function has the offset 0.
        """
        function = self.function(address)
        if function is None:
            return None
        return SiteName(function.module, function.name, address - function.start)

    def name(self, address: GuestVirtual) -> str:
        """Return ``func`` or ``func+0x1f``, with `` [module]``, or the address in hexadecimal."""
        name = self.site_name(address)
        if name is None:
            return f"{address:#x}"
        return str(name if name.offset else replace(name, offset=None))

    def addresses(self, name: str) -> Sequence[GuestVirtual]:
        """Return where the kernel's own symbols of this name are; static ones may share a name."""
        return self._addresses.get(name, ())

    def address_of(self, name: str) -> GuestVirtual | None:
        """Return where the kernel's only symbol of this name is; ``None`` without exactly one."""
        addresses = self.addresses(name)
        return addresses[0] if len(addresses) == 1 else None

    def section(self, start: str, end: str) -> tuple[GuestVirtual, GuestVirtual]:
        """Return the range between two marks of the linker script, the end exclusive.

        :raise SymbolsError: the kernel lacks one of them, or they are in the wrong order.
        """
        low, high = self.address_of(start), self.address_of(end)
        if low is None or high is None or low > high:
            raise SymbolsError(f"the guest's kernel has no section from {start} to {end}")
        return low, high

    def _kernel_functions(self, symbols: Sequence[tuple[int, str]]) -> list[Function]:
        functions = []
        for section in _TEXT_SECTIONS:
            low, high = self.section(*section)
            if high - low > _TEXT_SIZE_MAX:
                raise SymbolsError(f"the guest's kernel claims {high - low} bytes of text")
            first = bisect_left(symbols, low, key=itemgetter(0))
            last = bisect_left(symbols, high, key=itemgetter(0))
            functions += _cut(symbols[first:last], high)
        return functions

    def _set(self, functions: list[Function]) -> None:
        self._functions = sorted(functions, key=itemgetter(0))
        self._starts: npt.NDArray[np.uint64] = np.array(
            [function.start for function in self._functions], np.uint64
        )
        self._named: dict[str, list[Function]] = {}
        for function in self._functions:
            self._named.setdefault(function.name, []).append(function)


def _cut(symbols: Sequence[tuple[int, str]], end: int) -> list[Function]:
    """Functions from sorted symbols: each reaches to the next symbol, of its names the plainest."""
    functions = []
    position = 0
    while position < len(symbols):
        start = symbols[position][0]
        names = []
        while position < len(symbols) and symbols[position][0] == start:
            names.append(symbols[position][1])
            position += 1
        names = [name for name in names if not _MARK.fullmatch(name)]
        if names:
            following = symbols[position][0] if position < len(symbols) else end
            functions.append(
                Function(GuestVirtual(start), following - start, min(names, key=_plainness), None)
            )
    return functions


def _plainness(name: str) -> tuple[int, int, str]:
    return len(name) - len(name.lstrip("_")), len(name), name
