"""What holds for every block: one template, keystone and capstone agree, and it reads back."""

import re

import capstone
import keystone
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import branch_target, scratch_register, site_instruction
from optpolined.codegen.decode import BLOCK_BYTES_MAX
from optpolined.codegen.errors import CodegenError, DecodeError, VerifyError
from optpolined.codegen.forms import Chain
from optpolined.x86 import THUNK_REGISTERS, Register
from tests.unit.codegen.block_requests import (
    ASSEMBLER,
    DECODER,
    TOP,
    U64,
    Request,
    addresses,
    requests,
)

KEYSTONE = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)
CAPSTONE = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)

# Without what keystone has a shorter branch or compare for: blocks of a shape have one size.
kernel_requests = requests(code=range(TOP, 0xFFFFFFFFBFFF0000))


@settings(deadline=None)
@given(kernel_requests)
def test_a_filled_template_is_what_keystone_assembles(request: Request) -> None:
    expected, _ = KEYSTONE.asm(request.source(), request.at, as_bytes=True)
    assert request.assemble() == expected


def listing(request: Request) -> list[str]:
    """The instructions as they should read, written without a look at ``source``."""
    reg = str(CAPSTONE.reg_name(getattr(capstone.x86, f"X86_REG_{request.register.name}")))
    scratch = "r10" if reg == "r11" else "r11"
    record = f"movabs {scratch}, #{request.record:#x}"
    lines = []
    assert isinstance(request.form, Chain)
    for target in request.form.targets:
        lines.append(f"cmp {reg}, #{target:#x}")
        if request.form.counts_hits:
            lines += [f"jne over {target:#x}", f"push {scratch}", record]
            lines += [f"inc dword ptr gs:[{scratch} + 0x3c]", f"pop {scratch}"]
            lines.append(f"jmp #{target:#x}")
        else:
            lines.append(f"je #{target:#x}")
    return [*lines, f"push {scratch}", record, f"jmp #{request.learn_stub:#x}"]


def disassembly(code: bytes, at: int) -> list[str]:
    """Capstone's text, numbers as #u64, and a jne as what it jumps over."""
    instructions = list(CAPSTONE.disasm_lite(code, at))
    assert sum(size for _, size, _, _ in instructions) == len(code)
    starts = [address for address, _, _, _ in instructions]
    lines = []
    for _, _, mnemonic, operands in instructions:
        if mnemonic == "jne":
            last = instructions[starts.index(int(operands, 0)) - 1]
            assert last[2] == "jmp"
            lines.append(f"jne over {last[3]}")
        else:
            text = re.sub(r"(^|, )(-?(0x)?[0-9a-f]+)$", unsigned, operands)
            lines.append(f"{mnemonic} {text}")
    return lines


def unsigned(number: re.Match[str]) -> str:
    return f"{number[1]}#{int(number[2], 0) % U64:#x}"


@settings(deadline=None)
@given(requests(tree=False))
def test_a_chain_reads_as_it_should(request: Request) -> None:
    assert disassembly(request.assemble(), request.at) == listing(request)


@settings(deadline=None)
@given(requests(), st.binary(max_size=40))
def test_a_block_decodes_to_what_it_was_made_from(request: Request, after: bytes) -> None:
    code = request.assemble()
    stubs = {request.learn_stub: request.register, GuestVirtual(TOP - 1): Register.RCX}
    block = DECODER.decode_block(code + after, request.at, stubs)
    assert block == request.block(len(code))
    assert len(code) == ASSEMBLER.block_size(request.form, request.register) <= BLOCK_BYTES_MAX
    request.verify(code)


@settings(deadline=None)
@given(requests(), st.data())
def test_no_changed_bit_is_verified(request: Request, data: st.DataObject) -> None:
    code = bytearray(request.assemble())
    bit = data.draw(st.integers(0, 8 * len(code) - 1))
    code[bit // 8] ^= 1 << bit % 8
    with pytest.raises(VerifyError):
        request.verify(bytes(code))


def expect_ours_or_refused(
    code: bytes, at: GuestVirtual, stub: GuestVirtual, *more: Register
) -> None:
    """The decoder's one promise about bytes that it has not seen: what it accepts is ours."""
    for register in (Register.RAX, Register.R11, *more):
        try:
            block = DECODER.decode_block(code, at, {stub: register})
        except DecodeError:
            continue
        again = Request(block.form, block.register, at, block.record, stub, block.key_table)
        assert code[: block.size] == again.assemble()


@settings(deadline=None)
@given(st.binary(max_size=600), addresses(0), addresses(0))
@example(b"", GuestVirtual(0), GuestVirtual(0))
@example(b"\x41\x53", GuestVirtual(TOP), GuestVirtual(TOP))
@example(b"\xe9\x00\x00\x00\x00", GuestVirtual(U64 - 1), GuestVirtual(4))
def test_any_bytes_are_ours_or_refused(code: bytes, at: GuestVirtual, stub: GuestVirtual) -> None:
    expect_ours_or_refused(code, at, stub)


@settings(deadline=None)
@given(
    requests(),
    st.lists(
        st.tuples(st.integers(0, 2000), st.integers(-1, 3), st.binary(max_size=3)), max_size=3
    ),
)
def test_any_blend_with_a_block_is_ours_or_refused(
    request: Request, changes: list[tuple[int, int, bytes]]
) -> None:
    code = request.assemble()
    for offset, removed, added in changes:
        code = code[:offset] + added + code[max(0, offset + removed) :]
    expect_ours_or_refused(code, request.at, request.learn_stub, request.register)


@settings(deadline=None)
@given(requests(chain=False), st.data())
def test_any_change_of_the_source_is_ours_or_refused(request: Request, data: st.DataObject) -> None:
    lines = request.source().split("\n")
    places = st.integers(0, len(lines) - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        this, other = data.draw(places), data.draw(places)
        match data.draw(st.sampled_from(["swap", "copy", "jump"])):
            case "swap":
                lines[this], lines[other] = lines[other], lines[this]
            case "copy":
                lines[this] = lines[other]
            case _:
                lines[this] = lines[this].split(" ")[0] + " " + lines[other].split(" ")[-1]
    try:
        code, _ = KEYSTONE.asm("\n".join(lines), request.at, as_bytes=True)
    except keystone.KsError:
        return  # a label that stands twice or nowhere
    expect_ours_or_refused(code or b"", request.at, request.learn_stub, request.register)


pieces = st.sampled_from(
    [
        "cmp rax, 0xffffffff81000000",
        "cmp rax, 0xffffffff82000000",
        "cmp r11, 0xffffffff81000000",
        "je 0xffffffff81000000",
        "je 0xffffffff82000000",
        "push r11; movabs r11, 0x1000; inc dword ptr gs:[r11 + 60]; pop r11",
        "push r10; movabs r10, 0x1000; inc dword ptr gs:[r10 + 60]; pop r10",
        "jne end; push r11; movabs r11, 0x2000; inc dword ptr gs:[r11 + 60]; pop r11",
        "push r11; movabs r11, 0x1000",
        "push r10; movabs r10, 0x1000",
        "jmp 0xffffffff81000000",
        "jmp 0xffffffffc0000000",
        "jae end",
        "test edi, 0",
        "test edi, 8; jne end",
        "test edi, 16; je end2",
        "jmp end2",
        "push r11; push rcx; mov r11d, edi; shr r11d, 3; and r11d, 7; movabs rcx, 0x3000",
        "mov dword ptr gs:[rcx + r11*4], eax; pop rcx; pop r11",
        "end:",
        "end2:",
    ]
)


@settings(deadline=None)
@given(st.lists(pieces, max_size=12, unique=True))
def test_any_order_of_our_instructions_is_ours_or_refused(chosen: list[str]) -> None:
    try:
        code, _ = KEYSTONE.asm("; ".join(chosen), 0xFFFFFFFFC0001000, as_bytes=True)
    except keystone.KsError:
        return  # a label that stands nowhere
    expect_ours_or_refused(
        code or b"", GuestVirtual(0xFFFFFFFFC0001000), GuestVirtual(0xFFFFFFFFC0000000)
    )


@settings(deadline=None)
@given(
    st.sampled_from([b"\xe8", b"\xe9", b"\x2e\xe8", b"\x2e\xe9"]),
    st.binary(min_size=4, max_size=4),
    addresses(),
    addresses(),
)
def test_a_site_that_was_retargeted_goes_there(
    opcode: bytes, distance: bytes, at: GuestVirtual, target: GuestVirtual
) -> None:
    original = opcode + distance
    try:
        instruction = site_instruction(original, at, target)
        ((_, size, mnemonic, operands),) = CAPSTONE.disasm_lite(instruction, at)
    except CodegenError:
        assert not -(1 << 31) <= target - (at + len(original)) < 1 << 31
        return
    assert (size, mnemonic) == (len(original), "call" if opcode[-1] == 0xE8 else "jmp")
    assert int(operands, 0) == target == branch_target(instruction, at)


@settings(deadline=None)
@given(st.binary(max_size=8), addresses(0))
def test_any_bytes_are_a_branch_or_refused(code: bytes, at: GuestVirtual) -> None:
    try:
        target = branch_target(code, at)
    except DecodeError:
        return
    assert site_instruction(code, at, target) == code


def test_the_scratch_is_never_the_register() -> None:
    assert all(scratch_register(register) is not register for register in THUNK_REGISTERS)
