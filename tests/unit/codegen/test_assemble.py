"""What is assembled, what is refused, and what a refusal says."""

import struct

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import (
    HITS_OFFSET,
    Assembler,
    branch_target,
    site_instruction,
)
from optpolined.codegen.errors import AssembleError, DecodeError, ReachError
from optpolined.codegen.forms import LEARNING, Chain
from optpolined.kernel.module.abi import CounterRecord
from optpolined.x86 import THUNK_REGISTERS, Register

AT = GuestVirtual(0xFFFFFFFFC0200000)
STUB = GuestVirtual(0xFFFFFFFFC0100000)
TARGET = GuestVirtual(0xFFFFFFFF81000000)
RECORD = 0x1122334455667788


@pytest.fixture(scope="module")
def assembler() -> Assembler:
    return Assembler()


def block(
    assembler: Assembler,
    *targets: int,
    counts_hits: bool = False,
    register: Register = Register.RAX,
    at: int = AT,
    record: int = RECORD,
    learn_stub: int = STUB,
) -> bytes:
    return assembler.assemble(
        Chain(tuple(GuestVirtual(target) for target in targets), counts_hits),
        register=register,
        at=GuestVirtual(at),
        record=record,
        learn_stub=GuestVirtual(learn_stub),
    )


def test_the_learning_form(assembler: Assembler) -> None:
    assert block(assembler) == bytes.fromhex("41 53 49 bb 88 77 66 55 44 33 22 11 e9 ef ff ef ff")


def test_a_chain_of_one(assembler: Assembler) -> None:
    head = bytes.fromhex("48 3d 00 00 00 81 0f 84 f4 ff df c0")
    assert block(assembler, TARGET)[:12] == head


def test_a_counted_chain_of_one_that_needs_r10(assembler: Assembler) -> None:
    assert block(assembler, TARGET, counts_hits=True, register=Register.R11) == bytes.fromhex(
        "49 81 fb 00 00 00 81  75 18"
        "41 52  49 ba 88 77 66 55 44 33 22 11  65 41 ff 42 3c  41 5a  e9 df ff df c0"
        "41 52  49 ba 88 77 66 55 44 33 22 11  e9 ce ff ef ff"
    )


def test_a_block_has_one_size_wherever_it_stands(assembler: Assembler) -> None:
    near = block(assembler, AT + 64, AT + 80, register=Register.RBX)
    far = block(assembler, TARGET, TARGET + 16, register=Register.RBX)
    last = block(assembler, (1 << 64) - 1, (1 << 64) - 2, register=Register.RBX)
    assert len(near) == len(far) == len(last) == 2 * (7 + 6) + 17


def test_the_size_is_known_before_the_address(assembler: Assembler) -> None:
    for register in THUNK_REGISTERS:
        compare = 6 if register is Register.RAX else 7
        form = Chain((TARGET, GuestVirtual(TARGET + 16)))
        assert assembler.block_size(LEARNING, register) == 17
        assert assembler.block_size(form, register) == 2 * (compare + 6) + 17
        counted = Chain(form.targets, counts_hits=True)
        assert assembler.block_size(counted, register) == 2 * (compare + 26) + 17


def test_hits_are_where_the_module_has_them() -> None:
    assert CounterRecord.hits.offset == HITS_OFFSET


@pytest.mark.parametrize(
    "target", [1 << 31, 0xFFFFFFFF7FFFFFFF, 0x81000000, 0xFFFF888012345678, 1 << 64, -1]
)
def test_a_target_that_no_imm32_names_is_refused(assembler: Assembler, target: int) -> None:
    with pytest.raises(AssembleError, match=f"target {target:#x} is not in the lowest or the top"):
        block(assembler, TARGET, target)


def test_a_chain_in_user_space(assembler: Assembler) -> None:
    code = block(assembler, 0x7FFFFFFF, at=0x40000000, learn_stub=0x40001000)
    assert code[:12] == bytes.fromhex("48 3d ff ff ff 7f 0f 84 f3 ff ff 3f")


def test_a_target_twice_is_refused(assembler: Assembler) -> None:
    with pytest.raises(AssembleError, match="target 0xffffffff81000010 stands twice"):
        block(assembler, TARGET, TARGET + 16, TARGET + 16)


def test_seventeen_targets_are_refused(assembler: Assembler) -> None:
    with pytest.raises(AssembleError, match="17 targets: a chain has at most 16"):
        block(assembler, *range(TARGET, TARGET + 17))


def test_rsp_is_refused(assembler: Assembler) -> None:
    with pytest.raises(AssembleError, match="rsp"):
        block(assembler, register=Register.RSP)


def test_counting_the_hits_of_nothing_is_refused(assembler: Assembler) -> None:
    with pytest.raises(AssembleError, match="no hits to count"):
        block(assembler, counts_hits=True)


def test_a_learning_stub_out_of_reach_is_named(assembler: Assembler) -> None:
    stub = AT - (1 << 31)
    with pytest.raises(ReachError, match=f"{stub:#x} is out of reach") as caught:
        block(assembler, learn_stub=stub)
    assert caught.value.address == stub
    assert caught.value.end == AT + 17


def test_a_target_out_of_reach_is_named(assembler: Assembler) -> None:
    at = 0xFFFFFFFF00000000
    with pytest.raises(ReachError, match=f"{TARGET:#x} is out of reach"):
        block(assembler, TARGET, at=at, learn_stub=at)


@pytest.mark.parametrize("distance", [-(1 << 31), (1 << 31) - 1])
def test_a_rel32_reaches_so_far_and_no_further(assembler: Assembler, distance: int) -> None:
    at = 0xFFFF888000000000
    stub = at + 17 + distance
    assert block(assembler, at=at, learn_stub=stub)[-4:] == struct.pack("<i", distance)
    with pytest.raises(ReachError):
        block(assembler, at=at, learn_stub=stub + (1 if distance > 0 else -1))


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_what_does_not_fit_64_bits_is_refused(assembler: Assembler, value: int) -> None:
    with pytest.raises(AssembleError, match="does not fit 64 bits"):
        block(assembler, at=value)
    with pytest.raises(AssembleError, match="does not fit 64 bits"):
        block(assembler, record=value)
    with pytest.raises(AssembleError, match="does not fit 64 bits"):
        block(assembler, learn_stub=value)


def test_a_block_over_the_end_of_memory_is_refused(assembler: Assembler) -> None:
    with pytest.raises(AssembleError, match="end of the address space"):
        block(assembler, at=(1 << 64) - 16)
    assert len(block(assembler, at=(1 << 64) - 17)) == 17


def test_a_site_keeps_its_shape() -> None:
    call = bytes.fromhex("2e e8 00 00 00 00")
    assert site_instruction(call, AT, GuestVirtual(AT + 6)) == call
    assert site_instruction(call, AT, AT) == bytes.fromhex("2e e8 fa ff ff ff")
    assert site_instruction(call[1:], AT, AT) == bytes.fromhex("e8 fb ff ff ff")
    assert branch_target(bytes.fromhex("e9 fb ff ff ff"), AT) == AT


@pytest.mark.parametrize(
    "code",
    [
        "",
        "e8",
        "e8 00 00 00",
        "e8 00 00 00 00 00",
        "eb 00",
        "cc 00 00 00 00",
        "2e cc 00 00 00 00",
        "2e 2e e8 00 00 00 00",
        "3e e8 00 00 00 00",
        "0f 84 00 00 00 00",
        "ff d0 0f 1f 00",
    ],
)
def test_another_instruction_is_no_site(code: str) -> None:
    with pytest.raises(DecodeError, match="is no call or jmp rel32"):
        site_instruction(bytes.fromhex(code), AT, STUB)
    with pytest.raises(DecodeError, match="is no call or jmp rel32"):
        branch_target(bytes.fromhex(code), AT)


def test_a_site_out_of_reach_is_named() -> None:
    with pytest.raises(ReachError, match="0xffffffff40000000 is out of reach"):
        site_instruction(bytes.fromhex("e8 00 00 00 00"), AT, GuestVirtual(0xFFFFFFFF40000000))


def test_a_branch_out_of_the_address_space_is_refused() -> None:
    with pytest.raises(DecodeError, match="outside the address space"):
        branch_target(bytes.fromhex("e9 00 00 00 80"), GuestVirtual(0x1000))
    with pytest.raises(DecodeError, match="outside the address space"):
        branch_target(bytes.fromhex("e9 ff ff ff 7f"), AT)
