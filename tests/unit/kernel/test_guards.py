"""What guards a guest's kernel is recognised, and nothing else."""

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module.guards import integrity_guard, text_guard
from optpolined.kernel.module.module_list import GuestModule

LOCKED_DOWN = GuestVirtual(0xFFFFFFFF82E00000)


def module(name: str) -> GuestModule:
    at = GuestVirtual(0xFFFFFFFFC0000000)
    return GuestModule(name=name, text=at, size=4096, symtab=at, strtab=at, nr_symbols=0)


def guard(*modules: str, lockdown: bytes | None = bytes(4)) -> str | None:
    def addresses(name: str) -> list[GuestVirtual]:
        return [LOCKED_DOWN] if name == "kernel_locked_down" and lockdown is not None else []

    def read(address: GuestVirtual, size: int) -> bytes:
        assert (address, size) == (LOCKED_DOWN, 4)
        assert lockdown is not None
        return lockdown

    return integrity_guard(addresses, read, map(module, modules))


@pytest.mark.parametrize("name", ["lkrg", "p_lkrg"])
def test_lkrg_is_known_by_its_name(name: str) -> None:
    assert text_guard(["veth", name]) == f"LKRG (module {name})"
    assert guard("veth", name) == f"LKRG (module {name})"


@pytest.mark.parametrize("name", ["lkrg2", "LKRG", "not_lkrg", ""])
def test_other_modules_guard_nothing(name: str) -> None:
    assert text_guard([name]) is None
    assert guard(name) is None


@pytest.mark.parametrize("level", [b"\x01\0\0\0", b"\x10\0\0\0", b"\0\0\0\x80"])
def test_every_level_of_lockdown_counts(level: bytes) -> None:
    assert guard(lockdown=level) == "lockdown"


def test_a_kernel_without_lockdown_is_not_locked_down() -> None:
    assert guard(lockdown=None) is None
