"""The trees and the learning of keys: exact bytes, sizes, and what is refused."""

from collections.abc import Sequence

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import Assembler
from optpolined.codegen.check import check_key
from optpolined.codegen.decode import BLOCK_BYTES_MAX, Decoder
from optpolined.codegen.errors import AssembleError, BadKeyError
from optpolined.codegen.forms import KEY_BITS_MAX, Chain, Code, Key, Keyed, LearnKeys, Tree
from optpolined.x86 import THUNK_REGISTERS, Register

AT = GuestVirtual(0xFFFFFFFFC0200000)
STUB = GuestVirtual(0xFFFFFFFFC0100000)
RECORD = 0x1122334455667788
KEY_TABLE = 0x99AABBCCDDEEFF00
LOW, MIDDLE, HIGH = (GuestVirtual(0xFFFFFFFF81000000 + i * 0x1000000) for i in range(3))
KEY = Key(Register.RDI, 3, 2)


@pytest.fixture(scope="module")
def assembler() -> Assembler:
    return Assembler()


def block(
    assembler: Assembler, form: Code, register: Register = Register.RAX, key_table: int = 0
) -> bytes:
    return assembler.assemble(
        form, register=register, at=AT, record=RECORD, learn_stub=STUB, key_table=key_table
    )


def keyed(leaves: Sequence[tuple[int, int]], key: Key = KEY) -> Keyed:
    return Keyed(key, tuple((index, GuestVirtual(target)) for index, target in leaves))


MISS = "41 53  49 bb 88 77 66 55 44 33 22 11  e9"


def test_a_tree_of_three_targets(assembler: Assembler) -> None:
    assert block(assembler, Tree((HIGH, LOW, MIDDLE))) == bytes.fromhex(
        "48 3d 00 00 00 82  73 0e"
        "48 3d 00 00 00 81  0f 84 ec ff df c0  eb 22"
        "48 3d 00 00 00 83  73 0e"
        "48 3d 00 00 00 82  0f 84 d6 ff df c1  eb 0c"
        "48 3d 00 00 00 83  0f 84 c8 ff df c2" + MISS + "b7 ff ef ff"
    )


def test_a_tree_by_key_of_two_leaves(assembler: Assembler) -> None:
    assert block(assembler, keyed([(1, HIGH), (2, LOW)])) == bytes.fromhex(
        "f7 c7 10 00 00 00  75 16"
        "f7 c7 08 00 00 00  74 22"
        "48 3d 00 00 00 83  0f 84 e4 ff df c2  eb 14"
        "f7 c7 08 00 00 00  75 0c"
        "48 3d 00 00 00 81  0f 84 ce ff df c0" + MISS + "bd ff ef ff"
    )


def test_the_learning_of_keys(assembler: Assembler) -> None:
    assert block(assembler, LearnKeys(KEY), key_table=KEY_TABLE) == bytes.fromhex(
        "41 53  51  41 89 fb  41 c1 eb 03  41 83 e3 03"
        "48 b9 00 ff ee dd cc bb aa 99  65 42 89 04 99  59  41 5b" + MISS + "cf ff ef ff"
    )


def test_the_order_of_targets_and_leaves_does_not_matter() -> None:
    assert Tree((HIGH, LOW, MIDDLE)) == Tree((LOW, MIDDLE, HIGH))
    assert keyed([(3, LOW), (1, HIGH)]) == keyed([(1, HIGH), (3, LOW)])
    assert keyed([(3, LOW), (1, HIGH)]).targets == (HIGH, LOW)


def test_a_target_may_stand_at_several_keys(assembler: Assembler) -> None:
    form = keyed([(0, LOW), (1, LOW), (3, HIGH)])
    code = block(assembler, form)
    Decoder(assembler).verify(
        code, form, register=Register.RAX, at=AT, record=RECORD, learn_stub=STUB
    )


def largest(register: Register) -> list[Code]:
    targets = tuple(GuestVirtual(LOW + i) for i in range(64))
    key = Key(Register.R9 if register is not Register.R9 else Register.R8, 25, KEY_BITS_MAX)
    return [
        Chain(targets[:16]),
        Chain(targets[:16], counts_hits=True),
        Tree(targets),
        Keyed(key, tuple(enumerate(targets))),
        Keyed(key, tuple(enumerate(targets))[::3]),
        LearnKeys(key),
    ]


def test_no_block_is_longer_than_the_bound(assembler: Assembler) -> None:
    sizes = {
        assembler.block_size(form, register)
        for register in THUNK_REGISTERS
        for form in largest(register)
    }
    assert BLOCK_BYTES_MAX * 3 // 4 < max(sizes) <= BLOCK_BYTES_MAX


def test_the_largest_blocks_have_the_size_that_was_foretold_and_read_back(
    assembler: Assembler,
) -> None:
    decoder = Decoder(assembler)
    for register in THUNK_REGISTERS:
        for form in largest(register):
            key_table = KEY_TABLE if isinstance(form, LearnKeys) else 0
            code = block(assembler, form, register, key_table)
            assert assembler.block_size(form, register) == len(code)
            decoder.verify(
                code,
                form,
                register=register,
                at=AT,
                record=RECORD,
                learn_stub=STUB,
                key_table=key_table,
            )


def test_a_shape_is_assembled_once_and_a_thousand_are_kept() -> None:
    assembler = Assembler()
    forms = [
        keyed([(index, LOW) for index in range(6) if subset >> index & 1], Key(Register.R8, 0, 3))
        for subset in range(1, 64)
    ]
    first = block(assembler, forms[0], Register.RBX)
    for form in forms:
        for register in THUNK_REGISTERS:
            if register is not Register.R8:
                assembler.block_size(form, register)
    cached = assembler._template.cache_info()
    assert (cached.misses, cached.currsize) == (63 * 14, 63 * 14)
    assert cached.maxsize == 1024
    assert block(assembler, forms[0], Register.RBX) == first


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (Key(Register.RAX, 0, 1), "of rax cannot be used: this register holds the target"),
        (Key(Register.RSP, 0, 1), "of rsp cannot be used: rsp holds the stack"),
        (Key(Register.RDI, 3, 0), "key of 0 bits from bit 3 of rdi .* has 1 to 6 bits"),
        (Key(Register.RDI, 0, 7), "a key has 1 to 6 bits"),
        (Key(Register.RDI, 0, 1 << 40), "a key has 1 to 6 bits"),
        (Key(Register.RDI, 0, -1), "a key has 1 to 6 bits"),
        (Key(Register.RDI, -1, 4), "its bits must lie in the lower 31"),
        (Key(Register.RDI, 31, 1), "its bits must lie in the lower 31"),
        (Key(Register.RDI, 26, 6), "its bits must lie in the lower 31"),
        (Key(Register.RDI, 1 << 40, 1), "its bits must lie in the lower 31"),
    ],
)
def test_a_key_that_cannot_serve_is_named(assembler: Assembler, key: Key, reason: str) -> None:
    for form in (LearnKeys(key), keyed([(0, LOW)], key)):
        with pytest.raises(BadKeyError, match=reason) as caught:
            block(assembler, form, key_table=KEY_TABLE)
        assert caught.value.key == key
        with pytest.raises(BadKeyError, match=reason):
            assembler.block_size(form, Register.RAX)
    with pytest.raises(BadKeyError, match=reason):
        check_key(key, Register.RAX)


def test_a_key_may_end_at_bit_30(assembler: Assembler) -> None:
    check_key(Key(Register.RDI, 25, 6), Register.RAX)
    assert b"\xf7\xc7\x00\x00\x00\x40" in block(
        assembler, keyed([(0, LOW)], Key(Register.RDI, 25, 6))
    )


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (Tree(()), "0 targets: a tree has 2 to 64"),
        (Tree((LOW,)), "1 targets: a tree has 2 to 64"),
        (Tree(tuple(GuestVirtual(LOW + i) for i in range(65))), "65 targets: a tree has 2 to 64"),
        (Tree((LOW, HIGH, LOW)), "target 0xffffffff81000000 stands twice"),
        (Tree((LOW, GuestVirtual(1 << 31))), "0x80000000 is not in the lowest or the top 2 GiB"),
        (keyed([]), "at least one leaf"),
        (keyed([(4, LOW)]), "a leaf has index 4, but the key has 2 bits"),
        (keyed([(0, LOW), (-1, LOW)]), "a leaf has index -1, but the key has 2 bits"),
        (keyed([(i, LOW) for i in range(65)]), "a leaf has index 4, but"),
        (keyed([(1, LOW), (3, HIGH), (1, HIGH)]), "two leaves have index 1"),
        (keyed([(1, 1 << 31)]), "0x80000000 is not in the lowest or the top 2 GiB"),
    ],
)
def test_what_is_no_tree_is_refused(assembler: Assembler, form: Code, reason: str) -> None:
    with pytest.raises(AssembleError, match=reason):
        block(assembler, form)


@pytest.mark.parametrize("form", [Tree((LOW, HIGH)), keyed([(0, LOW)]), LearnKeys(KEY)])
def test_rsp_is_refused(assembler: Assembler, form: Code) -> None:
    with pytest.raises(AssembleError, match="rsp has no retpoline thunk"):
        block(assembler, form, Register.RSP)


def test_a_key_table_belongs_to_the_learning_of_keys(assembler: Assembler) -> None:
    with pytest.raises(AssembleError, match="needs a key table"):
        block(assembler, LearnKeys(KEY))
    for form in (Chain((LOW,)), Tree((LOW, HIGH)), keyed([(0, LOW)])):
        with pytest.raises(AssembleError, match="no other has one"):
            block(assembler, form, key_table=KEY_TABLE)
    for key_table in (-1, 1 << 64):
        with pytest.raises(AssembleError, match="does not fit 64 bits"):
            block(assembler, LearnKeys(KEY), key_table=key_table)
