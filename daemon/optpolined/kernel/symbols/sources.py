"""Where the kernel's own symbols come from.

    symbols = read_kernel_symbols(space, vmcoreinfo)

Kernels keep their symbols in different layouts.  Nothing here tests a version: each source is
tried, the newest layout first, and one that cannot be used says why.  A layout of another kernel
is one more `SymbolSource` in ``SOURCES``.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from optpolined.kernel.errors import SymbolsError
from optpolined.kernel.paging import AddressSpace
from optpolined.kernel.symbols.kallsyms import load_kallsyms
from optpolined.kernel.vmcoreinfo import Vmcoreinfo

__all__ = ("SOURCES", "SymbolSource", "read_kernel_symbols")


class SymbolSource(Protocol):
    """Read the address and name of each kernel symbol, in no order.  Names are printable ASCII.

    :raise SymbolsError: this kernel has no such tables, or they make no sense.
    :raise QemuError: the guest's memory cannot be read at all.
    """

    def __call__(self, space: AddressSpace, vmcoreinfo: Vmcoreinfo, /) -> list[tuple[int, str]]: ...


SOURCES: Final[Sequence[SymbolSource]] = (
    load_kallsyms,  # f09bddbd8661 (6.0): VMCOREINFO names the tables
)
"""The newest layout first."""


def read_kernel_symbols(
    space: AddressSpace, vmcoreinfo: Vmcoreinfo, sources: Sequence[SymbolSource] = SOURCES
) -> list[tuple[int, str]]:
    """Return the symbols of the first source that this kernel has.

    :raise SymbolsError: no source can be used.  The message gives the reason of each; ``__cause__``
        is the error of the only source, or an ``ExceptionGroup`` of all.
    :raise QemuError: the guest's memory cannot be read at all.
    """
    failures: list[SymbolsError] = []
    for source in sources:
        try:
            return source(space, vmcoreinfo)
        except SymbolsError as error:
            failures.append(error)
    if len(failures) == 1:
        raise SymbolsError(str(failures[0])) from failures[0]
    reasons = "; ".join(map(str, failures))
    raise SymbolsError(reasons) from ExceptionGroup("no source of kernel symbols", failures)
