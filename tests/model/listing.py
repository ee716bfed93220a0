"""The machine code that a task may meet: decoded in advance, and nothing else may be fetched."""

from collections.abc import Iterator
from typing import NamedTuple

import capstone
from capstone import x86_const

from optpolined.x86 import INT3, Register

U64 = (1 << 64) - 1

_NAMES = {register.name.lower(): register for register in Register}


class Op(NamedTuple):
    """One instruction: ``value`` is where it branches to, its immediate or its displacement."""

    name: str
    size: int
    register: Register | None
    value: int


def decode(code: bytes, at: int) -> Iterator[tuple[int, bytes, Op]]:
    """The instructions of ``code``, which must be nothing but whole ones."""
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    disassembler.detail = True
    end = at
    for insn in disassembler.disasm(code, at):
        register, value = None, 0
        for operand in insn.operands:
            if operand.type == x86_const.X86_OP_IMM:
                value = operand.imm & U64
            elif operand.type == x86_const.X86_OP_REG:
                register = _NAMES[insn.reg_name(operand.reg)]
            else:
                assert insn.reg_name(operand.mem.segment) == "gs"
                register = _NAMES[insn.reg_name(operand.mem.base)]
                value = operand.mem.disp
        yield insn.address, bytes(insn.bytes), Op(insn.mnemonic, insn.size, register, value)
        end = insn.address + insn.size
    assert end == at + len(code), f"{code.hex(' ')} at {at:#x} is not whole instructions"


class Listing:
    """Every instruction that was whole at some time, by where it begins."""

    def __init__(self) -> None:
        self.at: dict[int, dict[bytes, Op]] = {}

    def add(self, at: int, code: bytes) -> None:
        """What stands at ``at`` in some planned form of the text."""
        for address, data, op in decode(code, at):
            self.at.setdefault(address, {})[data] = op

    def add_breakpoint(self, at: int) -> None:
        """A breakpoint of ours may stand at ``at``."""
        self.at.setdefault(at, {})[bytes([INT3])] = Op("int3", 1, None, 0)
