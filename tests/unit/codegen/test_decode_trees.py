"""Trees and notes of keys that are nearly ours, and why they are refused.

All but what another encoding or another shape is refused for is seen before anything is assembled
again.
"""

import keystone
import pytest

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import Assembler
from optpolined.codegen.decode import DecodedBlock, Decoder
from optpolined.codegen.errors import DecodeError, VerifyError
from optpolined.codegen.forms import Code, Key, Keyed, LearnKeys, Tree
from optpolined.x86 import Register

AT = GuestVirtual(0xFFFFFFFFC0200000)
STUBS = {GuestVirtual(0xFFFFFFFFC0100000): Register.RAX}
LOW, HIGH = GuestVirtual(0xFFFFFFFF81000000), GuestVirtual(0xFFFFFFFF82000000)

TO_LOW = "cmp rax, 0xffffffff81000000; je 0xffffffff81000000"
TO_HIGH = "cmp rax, 0xffffffff82000000; je 0xffffffff82000000"
MISS = "miss: push r11; movabs r11, 0x1000; jmp 0xffffffffc0100000"
HALVES = "cmp rax, 0xffffffff82000000; jae upper"
TREE = f"{HALVES}; {TO_LOW}; jmp miss; upper: {TO_HIGH}; {MISS}"
SET = f"set: test edi, 8; je miss; {TO_HIGH}"
KEYED = f"test edi, 16; jne set; test edi, 8; jne miss; {TO_LOW}; jmp miss; {SET}; {MISS}"
NOTE = (
    "push r11; push rcx; mov r11d, edi; shr r11d, 3; and r11d, 7; movabs rcx, 0x2000; "
    f"mov dword ptr gs:[rcx + r11*4], eax; pop rcx; pop r11; {MISS}"
)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(Assembler())


def assembled(text: str) -> bytes:
    engine = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)
    code, _ = engine.asm(text, AT, as_bytes=True)
    assert isinstance(code, bytes)
    return code


FORMS: list[tuple[str, Code, int]] = [
    (TREE, Tree((LOW, HIGH)), 0),
    (KEYED, Keyed(Key(Register.RDI, 3, 2), ((0, LOW), (3, HIGH))), 0),
    (NOTE, LearnKeys(Key(Register.RDI, 3, 3)), 0x2000),
]


@pytest.mark.parametrize(("text", "form", "key_table"), FORMS)
def test_what_the_refusals_vary_is_accepted(
    decoder: Decoder, text: str, form: Code, key_table: int
) -> None:
    code = assembled(text)
    expected = DecodedBlock(form, Register.RAX, 0x1000, len(code), key_table)
    assert decoder.decode_block(code, AT, STUBS) == expected


def expect_refused(decoder: Decoder, text: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decoder.decode_block(assembled(text), AT, STUBS)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (HALVES, HALVES.replace("82", "83"), "parts at something else than 0xffffffff82000000"),
        (TO_LOW, TO_LOW.replace("81", "83"), "do not rise"),
        (TO_LOW, TO_HIGH, "do not rise"),
        (TO_LOW, TO_LOW.replace("je 0xffffffff81", "je 0xffffffff82"), "goes elsewhere"),
        (TO_LOW, TO_LOW.replace("rax", "rbx"), "compares rbx, but its stub is for rax"),
        (HALVES, HALVES.replace("rax", "rbx"), "compares rbx, but its stub is for rax"),
        ("jmp miss; ", "", "a miss of 0xffffffff81000000 leads elsewhere"),
        ("jmp miss", "jmp upper", "a miss of 0xffffffff81000000 leads elsewhere"),
        ("jmp miss", "jmp 0xffffffffa0000000", "a miss of 0xffffffff81000000 leads elsewhere"),
        ("jae upper", "jae miss", "no branch of its tree should go to 0xffffffffc02"),
        ("jae upper", "jae 0xffffffffa0000000", "should go to 0xffffffffa0000000"),
        ("upper: ", "upper: nop; ", "at 0xffffffffc0200017 nop"),
        ("upper: ", "nop; upper: ", "should go to 0xffffffffc0200017"),
        ("jae", "ja", "at 0xffffffffc0200006 cmp rax"),
        (f"{TO_HIGH}; ", "", "it ends where a target should be"),
        (MISS, f"jmp miss; {MISS}", "encoded in another way"),
        (MISS, f"nop; {MISS}", "a miss of 0xffffffff82000000 leads elsewhere"),
    ],
)
def test_another_tree_is_refused(decoder: Decoder, old: str, new: str, reason: str) -> None:
    assert old in TREE
    expect_refused(decoder, TREE.replace(old, new), reason)


def test_a_tree_of_another_shape_is_refused(decoder: Decoder) -> None:
    third = TO_HIGH.replace("82", "83")
    upper = f"cmp rax, 0xffffffff83000000; jae last; {TREE.partition(MISS)[0]}"
    expect_refused(decoder, f"{upper}jmp miss; last: {third}; {MISS}", "encoded in another way")


def test_a_tree_too_deep_is_refused(decoder: Decoder) -> None:
    steps = "; ".join([HALVES] * 7)
    expect_refused(decoder, f"{steps}; upper: {TO_LOW}; {MISS}", "too deep")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("set: test edi, 8", "set: test esi, 8", "does not test bit 0 of the key in its turn"),
        ("set: test edi, 8", "set: test edi, 4", "does not test bit 0 of the key in its turn"),
        ("set: test edi, 8", "set: test edi, 16", "does not test bit 0 of the key in its turn"),
        (SET, f"set: {TO_HIGH}", "does not test bit 0 of the key in its turn"),
        ("test edi, 16", "test edi, 32", "does not test bit 1 of the key in its turn"),
        ("test edi, 16; jne", "test edi, 16; je", "a clear bit of its key leads elsewhere"),
        ("jne set", "jne 0xffffffffa0000000", "should go to 0xffffffffa0000000"),
        ("jne set", "jne miss", "at 0xffffffffc020002[0-9a-f] test edi, 8"),
        ("set: ", "set: nop; ", "does not test bit 0"),
        ("test edi, 8; jne miss", "test edi, 0; jne miss", "tests 0x0, which is not one bit"),
        ("test edi, 8; jne miss", "test edi, 12; jne miss", "tests 0xc, which is not one bit"),
        ("test edi", "test rdi", "rdi holds no key"),
        ("test edi", "test dil", "dil holds no key"),
        ("test edi", "test eax", "of rax cannot be used: this register holds the target"),
        ("test edi", "test esp", "of rsp cannot be used: rsp holds the stack"),
        (TO_LOW, "nop", "at 0xffffffffc020001[0-9a-f] nop"),
        (TO_LOW, TO_LOW.replace("rax", "rbx"), "compares rbx"),
        ("jmp miss", "jmp set", "a miss of 0xffffffff81000000 leads elsewhere"),
        (MISS, f"jmp miss; {MISS}", "encoded in another way"),
    ],
)
def test_another_tree_by_key_is_refused(decoder: Decoder, old: str, new: str, reason: str) -> None:
    assert old in KEYED
    expect_refused(decoder, KEYED.replace(old, new), reason)


def test_a_key_out_of_bounds_is_refused(decoder: Decoder) -> None:
    def path(first: int, last: int) -> str:
        tests = (f"test edi, {1 << bit:#x}; jne miss; " for bit in range(first, last - 1, -1))
        return f"{''.join(tests)}{TO_LOW}; {MISS}"

    assert decoder.decode_block(assembled(path(30, 25)), AT, STUBS).form == Keyed(
        Key(Register.RDI, 25, 6), ((0, LOW),)
    )
    expect_refused(decoder, path(6, 0), "too many bits")
    expect_refused(decoder, path(31, 31), "its bits must lie in the lower 31")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("0x2000", "0", "needs a key table"),
        ("eax", "ebx", "notes targets by key in another way"),
        ("rcx", "rax", "notes targets by key in another way"),
        ("rcx", "rdx", "encoded in another way"),
        ("mov r11d, edi", "mov r11, rdi", "at 0xffffffffc0200002 push r11"),
        ("mov r11d, edi", "mov r10d, edi", "at 0xffffffffc0200002 push r11"),
        ("and r11d, 7", "and r11d, 6", "notes targets by key in another way"),
        ("and r11d, 7", "and r11d, -1", "key of 32 bits .* has 1 to 6 bits"),
        ("and r11d, 7", "and r11d, 0", "key of 0 bits"),
        ("shr r11d, 3", "shr r11d, 29", "its bits must lie in the lower 31"),
        ("shr r11d, 3", "shl r11d, 3", "at 0xffffffffc0200002 push r11"),
        ("edi", "eax", "this register holds the target"),
        ("edi", "esp", "rsp holds the stack"),
        ("r11*4", "r11*8", "at 0xffffffffc0200002 push r11"),
        ("r11*4", "r11*4 + 8", "at 0xffffffffc0200002 push r11"),
        ("gs:", "fs:", "at 0xffffffffc0200002 push r11"),
        ("dword ptr gs:[rcx + r11*4], eax", "qword ptr gs:[rcx + r11*4], rax", "push r11"),
        ("pop rcx; pop r11", "pop r11; pop rcx", "at 0xffffffffc0200002 push r11"),
        ("pop r11; ", "", "at 0xffffffffc0200002 push r11"),
    ],
)
def test_another_note_is_refused(decoder: Decoder, old: str, new: str, reason: str) -> None:
    assert old in NOTE
    expect_refused(decoder, NOTE.replace(old, new), reason)


def test_a_note_by_another_scratch_is_refused(decoder: Decoder) -> None:
    note, _, miss = NOTE.partition("miss:")
    expect_refused(
        decoder, f"{note.replace('r11', 'r10')}miss:{miss}", "notes targets by key in another"
    )
    other = note.replace(
        "mov r11d, edi; shr r11d, 3; and r11d, 7", "mov {0}, edi; shr {0}, 3; and {0}, 7"
    )
    expect_refused(decoder, f"{other.format('edx')}miss:{miss}", "notes targets by key in another")


@pytest.mark.parametrize("text", [TREE, KEYED, NOTE])
def test_a_cut_block_is_refused(decoder: Decoder, text: str) -> None:
    code = assembled(text)
    for size in range(len(code)):
        with pytest.raises(DecodeError):
            decoder.decode_block(code[:size], AT, STUBS)


@pytest.mark.parametrize(
    "soup", [f"here: {HALVES.replace('upper', 'here')}", "here: test edi, 8; jne here", "push r11"]
)
def test_a_megabyte_costs_no_more_than_a_block(decoder: Decoder, soup: str) -> None:
    piece = assembled(soup)
    code = piece * ((1 << 20) // len(piece))
    assert len(decoder._lines(code, AT)) < 400
    for end in (b"", assembled(MISS)):
        with pytest.raises(DecodeError):
            decoder.decode_block(piece * 100 + end + code, AT, STUBS)


@pytest.mark.parametrize(("text", "form", "key_table"), FORMS)
def test_verify_says_what_differs(decoder: Decoder, text: str, form: Code, key_table: int) -> None:
    def verify(form: Code, key_table: int) -> None:
        decoder.verify(
            assembled(text),
            form,
            register=Register.RAX,
            at=AT,
            record=0x1000,
            learn_stub=GuestVirtual(0xFFFFFFFFC0100000),
            key_table=key_table,
        )

    verify(form, key_table)
    with pytest.raises(VerifyError, match="instead of DecodedBlock"):
        verify(form, key_table + 8)
    with pytest.raises(VerifyError, match="instead of DecodedBlock"):
        verify(Tree((LOW, GuestVirtual(HIGH + 1))), key_table)
