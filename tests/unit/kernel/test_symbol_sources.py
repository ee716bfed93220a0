"""Sources of the kernel's symbols: tried in order, with every reason kept where all fail."""

from collections.abc import Sequence

import pytest

from optpolined.kernel.errors import SymbolsError
from optpolined.kernel.paging import AddressSpace
from optpolined.kernel.symbols.sources import SymbolSource, read_kernel_symbols
from optpolined.kernel.vmcoreinfo import Vmcoreinfo, parse_vmcoreinfo
from optpolined.qemu.errors import QemuError
from tests.unit.kernel.fake_guest import FakeGuest

VMCOREINFO = b"OSRELEASE=6.1.0\nPAGESIZE=4096\n"
FOUND = [(0xFFFFFFFF81000000, "_stext")]


def has(space: AddressSpace, vmcoreinfo: Vmcoreinfo, /) -> list[tuple[int, str]]:
    assert space is not None
    assert vmcoreinfo.osrelease
    return FOUND


def lacks(reason: str) -> SymbolSource:
    def source(_space: AddressSpace, _vmcoreinfo: Vmcoreinfo, /) -> list[tuple[int, str]]:
        raise SymbolsError(reason)

    return source


def lost(_space: AddressSpace, _vmcoreinfo: Vmcoreinfo, /) -> list[tuple[int, str]]:
    raise QemuError("the process is gone")


def read(sources: Sequence[SymbolSource]) -> list[tuple[int, str]]:
    note = parse_vmcoreinfo(VMCOREINFO)
    return read_kernel_symbols(FakeGuest().space, note, sources)


def test_the_first_source_that_the_kernel_has_is_used() -> None:
    assert read([lacks("no place-relative offsets"), has, lost]) == FOUND


def test_the_error_of_the_only_source_is_told_as_it_is() -> None:
    with pytest.raises(SymbolsError, match=r"^too old$") as caught:
        read([lacks("too old")])
    assert isinstance(caught.value.__cause__, SymbolsError)


def test_the_reason_of_every_source_is_kept() -> None:
    with pytest.raises(SymbolsError, match=r"^too new; too old$") as caught:
        read([lacks("too new"), lacks("too old")])
    cause = caught.value.__cause__
    assert isinstance(cause, ExceptionGroup)
    assert [str(error) for error in cause.exceptions] == ["too new", "too old"]


def test_memory_that_cannot_be_read_ends_the_search() -> None:
    with pytest.raises(QemuError):
        read([lost, has])
