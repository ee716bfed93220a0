"""Code that is nearly ours, and why it is refused."""

from collections.abc import Iterable

import keystone
import pytest

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import Assembler
from optpolined.codegen.decode import DecodedBlock, Decoder
from optpolined.codegen.errors import DecodeError, VerifyError
from optpolined.codegen.forms import LEARNING, Chain
from optpolined.x86 import Register

AT = GuestVirtual(0xFFFFFFFFC0200000)
STUB = GuestVirtual(0xFFFFFFFFC0100000)
RBX_STUB = GuestVirtual(0xFFFFFFFFC0100040)
STUBS = {STUB: Register.RAX, RBX_STUB: Register.RBX}

FIRST = "cmp rax, 0xffffffff81000000; je 0xffffffff81000000"
COUNT = "push r11; movabs r11, 0x1000; inc dword ptr gs:[r11 + 60]; pop r11"
COUNTED = f"cmp rax, 0xffffffff82000000; jne next; {COUNT}; jmp 0xffffffff82000000; next:"
MISS = "push r11; movabs r11, 0x1000; jmp 0xffffffffc0100000"


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(Assembler())


def assembled(*text: str, at: GuestVirtual = AT) -> bytes:
    engine = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)
    code, _ = engine.asm("; ".join(text), at, as_bytes=True)
    assert isinstance(code, bytes)
    return code


def test_what_the_refusals_vary_is_accepted(decoder: Decoder) -> None:
    first, second = GuestVirtual(0xFFFFFFFF81000000), GuestVirtual(0xFFFFFFFF82000000)
    assert decoder.decode_block(assembled(MISS), AT, STUBS) == DecodedBlock(
        LEARNING, Register.RAX, 0x1000, 17
    )
    assert decoder.decode_block(assembled(FIRST, MISS), AT, STUBS) == DecodedBlock(
        Chain((first,)), Register.RAX, 0x1000, 29
    )
    assert decoder.decode_block(assembled(COUNTED, MISS), AT, STUBS) == DecodedBlock(
        Chain((second,), counts_hits=True), Register.RAX, 0x1000, 49
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ([FIRST, FIRST, MISS], "0xffffffff81000000 stands twice"),
        ([FIRST, COUNTED, MISS], "at 0xffffffffc0200012 cmp rax"),
        ([COUNTED, FIRST, MISS], "at 0xffffffffc0200026 cmp rax"),
        ([COUNTED.replace("0x1000", "0x2000"), MISS], "in different ways"),
        ([COUNTED.replace("r11", "r10"), MISS], "in different ways"),
        ([COUNTED.replace("next:", "nop; next:"), MISS], "cmp rax"),
        ([COUNTED.replace("+ 60", "+ 56"), MISS], "cmp rax"),
        ([COUNTED.replace("gs:", "fs:"), MISS], "cmp rax"),
        ([COUNTED.replace("inc dword", "inc qword"), MISS], "cmp rax"),
        ([COUNTED.replace("pop r11", "pop r10"), MISS], "cmp rax"),
        ([COUNTED.replace("movabs r11", "movabs r10"), MISS], "cmp rax"),
        ([FIRST.replace("je 0xffffffff81", "je 0xffffffff82"), MISS], "goes elsewhere"),
        ([COUNTED.replace("jmp 0xffffffff82", "jmp 0xffffffff81"), MISS], "goes elsewhere"),
        ([FIRST.replace("je", "jb"), MISS], "cmp rax"),
        ([FIRST.replace("cmp rax", "cmp eax"), MISS], "compares eax"),
        ([FIRST.replace("cmp rax", "cmp rbx"), MISS], "compares rbx, but its stub is for rax"),
        (["cmp rax, qword ptr [rbx]; je 0xffffffff81000000", MISS], "cmp rax, qword ptr"),
        ([MISS.replace("c0100000", "c0100001")], "0xffffffffc0100001 is no learning stub"),
        ([MISS.replace("r11", "r10")], "another scratch"),
        ([MISS.replace("push r11", "push r10")], "no way to a learning stub"),
        (["nop", MISS], "nop"),
        (["push r11; movabs r11, 0x1000", "jmp rax"], "ends at 0xffffffffc020000e jmp rax"),
        (["push r11; movabs r11, 0x1000"], "ends at 0xffffffffc020000c movabs r11"),
        ([FIRST], "ends at 0xffffffffc020000c je"),
    ],
)
def test_another_sequence_is_refused(decoder: Decoder, text: list[str], reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decoder.decode_block(assembled(*text), AT, STUBS)


def placed(instructions: Iterable[tuple[str, int | None]]) -> bytes:
    """Code at AT from the bytes of each instruction, and the destination of those with a rel32."""
    code = b""
    for head, destination in instructions:
        code += bytes.fromhex(head)
        if destination is not None:
            code += (destination - (AT + len(code) + 4)).to_bytes(4, "little", signed=True)
    return code


ENCODING: dict[str, tuple[str, int | None]] = {
    "cmp": ("48 3d 00 00 00 81", None),
    "je": ("0f 84", 0xFFFFFFFF81000000),
    "push": ("41 53", None),
    "movabs": ("49 bb 00 10 00 00 00 00 00 00", None),
    "jmp": ("e9", STUB),
}


def test_our_encoding_is_accepted(decoder: Decoder) -> None:
    code = placed(ENCODING.values())
    assert code == assembled(FIRST, MISS)
    assert decoder.decode_block(code, AT, STUBS).size == len(code)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("cmp", "48 81 f8 00 00 00 81"),  # a ModRM byte that rax does not need
        ("cmp", "4a 3d 00 00 00 81"),  # REX.X, which means nothing here
        ("cmp", "2e 48 3d 00 00 00 81"),  # a segment that nothing is read from
        ("push", "4b 53"),
        ("push", "41 ff f3"),
        ("movabs", "4b bb 00 10 00 00 00 00 00 00"),
        ("jmp", "2e e9"),
        ("jmp", "48 e9"),
    ],
)
def test_another_encoding_is_refused(decoder: Decoder, name: str, other: str) -> None:
    code = placed((ENCODING | {name: (other, ENCODING[name][1])}).values())
    with pytest.raises(DecodeError, match="encoded in another way"):
        decoder.decode_block(code, AT, STUBS)


def test_a_block_of_user_space_is_accepted(decoder: Decoder) -> None:
    at, stub = GuestVirtual(0x10000), GuestVirtual(0x30000)
    arm, miss = "cmp rax, 0x20000; je 0x20000", "push r11; movabs r11, 0x1000; jmp 0x30000"
    block = decoder.decode_block(assembled(arm, miss, at=at), at, {stub: Register.RAX})
    assert block.form == Chain((GuestVirtual(0x20000),))


def test_nothing_is_no_block(decoder: Decoder) -> None:
    with pytest.raises(DecodeError, match="ends at 0xffffffffc0200000"):
        decoder.decode_block(b"", AT, STUBS)


def test_a_cut_block_is_refused(decoder: Decoder) -> None:
    code = assembled(FIRST, MISS)
    for size in range(len(code)):
        with pytest.raises(DecodeError):
            decoder.decode_block(code[:size], AT, STUBS)


def test_seventeen_targets_are_refused(decoder: Decoder) -> None:
    arms = [FIRST.replace("81000000", f"810000{i:02x}") for i in range(17)]
    assert len(decoder.decode_block(assembled(*arms[:16], MISS), AT, STUBS).form.targets) == 16
    with pytest.raises(DecodeError, match="17 targets"):
        decoder.decode_block(assembled(*arms, MISS), AT, STUBS)


@pytest.mark.parametrize("soup", [FIRST, COUNT, "nop", "movabs r11, 0x1000"])
def test_a_megabyte_costs_no_more_than_a_block(decoder: Decoder, soup: str) -> None:
    code = assembled(soup)
    code *= (1 << 20) // len(code)
    assert len(decoder._lines(code, AT)) < 400
    with pytest.raises(DecodeError):
        decoder.decode_block(code, AT, STUBS)


def test_verify_says_what_differs(decoder: Decoder) -> None:
    code = assembled(FIRST, MISS)
    form = Chain((GuestVirtual(0xFFFFFFFF81000000),))

    def verify(code: bytes, form: Chain, record: int = 0x1000) -> None:
        decoder.verify(code, form, register=Register.RAX, at=AT, record=record, learn_stub=STUB)

    verify(code, form)
    for wrong in (LEARNING, Chain(form.targets, counts_hits=True)):
        with pytest.raises(VerifyError, match="instead of DecodedBlock"):
            verify(code, wrong)
    with pytest.raises(VerifyError, match="instead of DecodedBlock"):
        verify(code, form, record=0x1001)
    with pytest.raises(VerifyError, match="instead of DecodedBlock"):
        verify(code + b"\xcc", form)
    with pytest.raises(VerifyError, match="no way to a learning stub") as caught:
        verify(code[:-1], form)
    assert caught.value.address == AT
