"""The trees and the learning of keys, executed as the chains are in test_block_execution.py."""

import struct
from itertools import chain, combinations

import pytest

from optpolined.codegen.assemble import Assembler
from optpolined.codegen.forms import KEY_BITS_MAX, Key, Keyed, LearnKeys, Tree
from optpolined.x86 import THUNK_REGISTERS, Register
from tests.unit.codegen.block_machine import (
    KEY_TABLE_ADDRESSES,
    KEY_TABLE_BYTES,
    LAYOUTS,
    RECORD_ADDRESSES,
    REGISTERS,
    U64,
    ZERO_FLAG,
    Layout,
    Machine,
    expect_hit,
    expect_miss,
    misses,
)

HOME = LAYOUTS["module area to kernel text"]
SHIFT_MAX = 31

# What surrounds the key in its register.
SURROUNDINGS = (0, U64 - 1, 0x5A5A5A5AA5A5A5A5)


@pytest.fixture(scope="module")
def assembler() -> Assembler:
    return Assembler()


@pytest.fixture(scope="module")
def machine() -> Machine:
    machine = Machine()
    machine.map_layout(HOME)
    return machine


def with_index(key: Key, index: int, surrounding: int) -> int:
    """A value of the key's register that has ``index``."""
    mask = (1 << key.bits) - 1 << key.shift
    return surrounding & ~mask | index << key.shift


def expect_tree(assembler: Assembler, register: Register, layout: Layout, nr_targets: int) -> None:
    machine = Machine(RECORD_ADDRESSES[nr_targets % len(RECORD_ADDRESSES)])
    machine.map_layout(layout, nr_targets + 2)
    form = Tree(layout.targets[:nr_targets])
    code = assembler.assemble(
        form, register=register, at=layout.at, record=machine.record, learn_stub=layout.learn_stub
    )
    assert len(form.targets) == nr_targets
    for target in form.targets:
        entry = REGISTERS | {register: target}
        expect_hit(machine.run(code, layout.at, entry, 0), entry, target)
    between = {target + 1 for target in form.targets} | {target - 1 for target in form.targets}
    others = layout.targets[nr_targets : nr_targets + 2]
    for value in (*misses(layout, form.targets), *between - {*layout.targets, U64}, *others):
        entry = REGISTERS | {register: value}
        arrival = machine.run(code, layout.at, entry, ZERO_FLAG)
        expect_miss(arrival, entry, layout, register, machine.record)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("register", THUNK_REGISTERS, ids=lambda register: register.name)
def test_a_tree_by_target_finds_each_of_them(
    assembler: Assembler, register: Register, layout: Layout
) -> None:
    for nr_targets in (2, 3, 16):
        expect_tree(assembler, register, layout, nr_targets)


@pytest.mark.parametrize("nr_targets", range(2, 65))
def test_a_tree_of_any_number_finds_each_of_them(assembler: Assembler, nr_targets: int) -> None:
    expect_tree(assembler, THUNK_REGISTERS[nr_targets % len(THUNK_REGISTERS)], HOME, nr_targets)


def expect_keyed(
    assembler: Assembler,
    machine: Machine,
    register: Register,
    form: Keyed,
    layout: Layout,
) -> None:
    """Each index goes to its leaf, if that is the target; each other call goes slow."""
    key, leaves = form.key, dict(form.leaves)
    code = assembler.assemble(
        form, register=register, at=layout.at, record=machine.record, learn_stub=layout.learn_stub
    )
    for index in range(1 << key.bits):
        surrounding = SURROUNDINGS[index % len(SURROUNDINGS)]
        wrong = (form.leaves[0][1], form.leaves[-1][1], leaves.get(index, 0) ^ 1 << 32, 0)
        for value in {leaves.get(index, U64 - 1), *wrong[index % 2 :: 2]}:
            entry = REGISTERS | {
                register: value,
                key.register: with_index(key, index, surrounding),
            }
            arrival = machine.run(code, layout.at, entry, ZERO_FLAG if index & 1 else 0)
            if leaves.get(index) == value:
                expect_hit(arrival, entry, value)
            else:
                expect_miss(arrival, entry, layout, register, machine.record)


@pytest.mark.parametrize("register", THUNK_REGISTERS, ids=lambda register: register.name)
def test_a_tree_by_any_key_finds_its_leaves(
    assembler: Assembler, machine: Machine, register: Register
) -> None:
    others = (other for other in THUNK_REGISTERS if other is not register)
    for count, key_register in enumerate(others, start=register):
        bits = count % KEY_BITS_MAX + 1
        key = Key(key_register, (0, SHIFT_MAX - bits, count % (SHIFT_MAX - bits))[count % 3], bits)
        indices = range(0, 1 << bits, (1, 3)[count % 4 // 2])
        form = Keyed(key, tuple((index, HOME.targets[index * 7 % 13]) for index in indices))
        expect_keyed(assembler, machine, register, form, HOME)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_a_tree_of_any_leaves_finds_each_of_them(
    assembler: Assembler, machine: Machine, bits: int
) -> None:
    indices = range(1 << bits)
    subsets = chain.from_iterable(combinations(indices, size) for size in indices[1:])
    for subset in [*subsets, tuple(indices)]:
        form = Keyed(Key(Register.RDI, 4, bits), tuple((i, HOME.targets[i]) for i in subset))
        expect_keyed(assembler, machine, Register.RAX, form, HOME)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_largest_tree_by_key_finds_its_leaves(assembler: Assembler, layout: Layout) -> None:
    form = Keyed(Key(Register.R9, 12, KEY_BITS_MAX), tuple(enumerate(layout.targets)))
    for record_address, register in zip(RECORD_ADDRESSES, THUNK_REGISTERS, strict=False):
        machine = Machine(record_address)
        machine.map_layout(layout)
        expect_keyed(assembler, machine, register, form, layout)


@pytest.mark.parametrize("key_table_address", KEY_TABLE_ADDRESSES, ids=hex)
@pytest.mark.parametrize("register", THUNK_REGISTERS, ids=lambda register: register.name)
def test_the_target_of_each_key_is_noted(
    assembler: Assembler, register: Register, key_table_address: int
) -> None:
    machine = Machine(key_table_address=key_table_address)
    machine.map_layout(HOME)
    others = (other for other in THUNK_REGISTERS if other is not register)
    for count, key_register in enumerate(others, start=register):
        bits = count % KEY_BITS_MAX + 1
        key = Key(key_register, (0, SHIFT_MAX - bits, 1)[count % 3], bits)
        code = assembler.assemble(
            LearnKeys(key),
            register=register,
            at=HOME.at,
            record=machine.record,
            learn_stub=HOME.learn_stub,
            key_table=machine.key_table,
        )
        for index in {0, 1, (1 << bits) // 2, (1 << bits) - 1}:
            target = HOME.targets[index]
            surrounding = SURROUNDINGS[(index + count) % len(SURROUNDINGS)]
            entry = REGISTERS | {
                register: target,
                key_register: with_index(key, index, surrounding),
            }
            arrival = machine.run(code, HOME.at, entry, 0)
            noted = bytearray(KEY_TABLE_BYTES)
            struct.pack_into("<I", noted, 8 + 4 * index, target % (1 << 32))
            expect_miss(arrival, entry, HOME, register, machine.record, key_table=bytes(noted))
