"""Every block, executed: control arrives where the register says, and nothing else changes."""

import struct

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import MAX_TARGETS, Assembler, site_instruction
from optpolined.codegen.forms import Chain
from optpolined.x86 import THUNK_REGISTERS, Register
from tests.unit.codegen.block_machine import (
    LAYOUTS,
    PAGE,
    RECORD_ADDRESSES,
    REGISTERS,
    RSP,
    STACK_BYTES,
    ZERO_FLAG,
    Layout,
    Machine,
    expect_hit,
    expect_miss,
    misses,
)


@pytest.fixture(scope="module")
def assembler() -> Assembler:
    return Assembler()


@pytest.mark.parametrize("counts", [False, True], ids=["plain", "counts hits"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("register", THUNK_REGISTERS, ids=lambda register: register.name)
def test_each_value_of_the_register_arrives(
    assembler: Assembler, register: Register, layout: Layout, counts: bool
) -> None:
    for number, nr_targets in enumerate((1, 2, 3, 4, 8, 16) if counts else (0, 1, 2, 3, 4, 8, 16)):
        machine = Machine(RECORD_ADDRESSES[number % len(RECORD_ADDRESSES)])
        machine.map_layout(layout, MAX_TARGETS)
        record = machine.record
        form = Chain(layout.targets[:nr_targets], counts)
        code = assembler.assemble(
            form, register=register, at=layout.at, record=record, learn_stub=layout.learn_stub
        )

        for target in form.targets:
            entry = REGISTERS | {register: target}
            expect_hit(machine.run(code, layout.at, entry, 0), entry, target, counts=counts)
        others = list(layout.targets[nr_targets:MAX_TARGETS])
        for value in misses(layout, form.targets) + others:
            entry = REGISTERS | {register: value}
            arrival = machine.run(code, layout.at, entry, ZERO_FLAG)
            expect_miss(arrival, entry, layout, register, record)


@pytest.mark.parametrize("prefix", [b"", b"\x2e"], ids=["5 bytes", "6 bytes"])
@pytest.mark.parametrize("target", [0xFFFFFFFF81000040, 0xFFFFFFFFC0200040, 0xFFFFFFFFFFFFD000])
@pytest.mark.parametrize("opcode", [0xE8, 0xE9], ids=["call", "jmp"])
def test_a_site_goes_to_its_target(opcode: int, target: int, prefix: bytes) -> None:
    site = GuestVirtual(0xFFFFFFFF81234567)
    original = prefix + bytes((opcode, 0, 0, 0, 0))
    code = site_instruction(original, site, GuestVirtual(target))
    machine = Machine()
    machine.map(target, 1)
    arrival = machine.run(code, site, REGISTERS, 0)
    assert arrival.address == target
    if opcode == 0xE8:
        assert arrival.registers == REGISTERS | {Register.RSP: RSP - 8}
        assert arrival.stack[PAGE - 8 : PAGE] == struct.pack("<Q", site + len(original))
    else:
        assert arrival.registers == REGISTERS
    assert arrival.stack[PAGE:] == STACK_BYTES[PAGE:]
