"""The machine code that a task may meet: decoded in advance, and nothing else may be fetched."""

from collections.abc import Iterator
from typing import NamedTuple

import capstone
from capstone import x86_const

from optpolined.codegen.source import lower_half
from optpolined.x86 import INT3, Register

U64 = (1 << 64) - 1

_NAMES = {register.name.lower(): register for register in Register} | {
    lower_half(register): register for register in Register
}


class Op(NamedTuple):
    """One instruction: ``value`` is where it branches to, its immediate or its displacement.

    Where it uses memory, which is percpu, that is at ``base`` and four times ``times_four``.
    """

    name: str
    size: int
    register: Register | None = None
    value: int = 0
    source: Register | None = None
    base: Register | None = None
    times_four: Register | None = None


def decode(code: bytes, at: int) -> Iterator[tuple[int, bytes, Op]]:
    """The instructions of ``code``, which must be nothing but whole ones."""
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    disassembler.detail = True
    end = at
    for insn in disassembler.disasm(code, at):
        op = Op(insn.mnemonic, insn.size)
        yield insn.address, bytes(insn.bytes), op if op.name == "nop" else _with_operands(op, insn)
        end = insn.address + insn.size
    assert end == at + len(code), f"{code.hex(' ')} at {at:#x} is not whole instructions"


def _with_operands(op: Op, insn: capstone.CsInsn) -> Op:
    for operand in insn.operands:
        if operand.type == x86_const.X86_OP_IMM:
            op = op._replace(value=operand.imm & U64)
        elif operand.type == x86_const.X86_OP_REG:
            register = _NAMES[insn.reg_name(operand.reg)]
            is_source = op.register is not None or op.base is not None
            op = op._replace(source=register) if is_source else op._replace(register=register)
        else:
            assert insn.reg_name(operand.mem.segment) == "gs"
            op = op._replace(base=_NAMES[insn.reg_name(operand.mem.base)], value=operand.mem.disp)
            if operand.mem.index:
                assert operand.mem.scale == 4
                op = op._replace(times_four=_NAMES[insn.reg_name(operand.mem.index)])
    return op


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
        self.at.setdefault(at, {})[bytes([INT3])] = Op("int3", 1)
