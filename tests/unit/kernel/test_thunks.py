"""The thunks of kernels with one array and with one for each kind of branch."""

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.sites.scan import scan
from optpolined.kernel.sites.thunks import ThunkArray, Thunks
from optpolined.kernel.symbols.symbols import Function
from optpolined.x86 import Register

BASE = GuestVirtual(0xFFFFFFFF81000000)
CALLS = {register: GuestVirtual(BASE + 0x10000 + 32 * register) for register in Register}
JUMPS = {register: GuestVirtual(BASE + 0x20000 + 32 * register) for register in Register}
TWO_ARRAYS = Thunks(
    [ThunkArray(CALLS, frozenset({SiteKind.CALL})), ThunkArray(JUMPS, frozenset({SiteKind.JMP}))]
)


@pytest.mark.parametrize("kind", [SiteKind.CALL, SiteKind.JMP])
def test_one_array_serves_calls_and_jumps(kind: SiteKind) -> None:
    thunks = Thunks.one_array(CALLS)
    assert thunks.register_at(CALLS[Register.RBX], kind) is Register.RBX
    assert thunks.address(Register.RBX, kind) == CALLS[Register.RBX]
    assert thunks.register_at(BASE, kind) is None
    assert thunks.addresses().tolist() == sorted(CALLS.values())


def test_a_register_without_a_thunk_has_no_address() -> None:
    with pytest.raises(KeyError):
        Thunks.one_array({Register.RAX: BASE}).address(Register.RCX, SiteKind.CALL)


def test_an_array_of_its_own_for_each_kind() -> None:
    assert TWO_ARRAYS.register_at(CALLS[Register.R8], SiteKind.CALL) is Register.R8
    assert TWO_ARRAYS.register_at(CALLS[Register.R8], SiteKind.JMP) is None
    assert TWO_ARRAYS.address(Register.R8, SiteKind.CALL) == CALLS[Register.R8]
    assert TWO_ARRAYS.address(Register.R8, SiteKind.JMP) == JUMPS[Register.R8]
    assert len(TWO_ARRAYS.addresses()) == 2 * len(Register)


def test_the_first_of_two_arrays_is_what_new_code_branches_to() -> None:
    both = Thunks([ThunkArray(JUMPS), ThunkArray(CALLS)])
    assert both.address(Register.RAX, SiteKind.CALL) == JUMPS[Register.RAX]
    assert both.register_at(CALLS[Register.RAX], SiteKind.CALL) is Register.RAX


def test_the_scan_takes_a_branch_only_to_a_thunk_of_its_kind() -> None:
    branches = [
        (0xE8, CALLS[Register.RDI]),
        (0xE9, CALLS[Register.RSI]),
        (0xE9, JUMPS[Register.RDX]),
        (0xE8, JUMPS[Register.RCX]),
    ]
    text = b"".join(
        bytes([opcode]) + (target - BASE - end).to_bytes(4, "little", signed=True)
        for end, (opcode, target) in enumerate(branches, 1)
        for end in (5 * end,)
    )
    found = scan(text, BASE, TWO_ARRAYS, [Function(BASE, len(text), "f", None)])
    assert [(site.address - BASE, site.register, site.kind) for site in found.sites] == [
        (0, Register.RDI, SiteKind.CALL),
        (10, Register.RDX, SiteKind.JMP),
    ]
    assert found.rejected == []
