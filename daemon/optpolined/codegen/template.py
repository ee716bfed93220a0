"""Assembles code once for each shape, and fills in the addresses.

Keystone needs 100 us for a short block and milliseconds for a large tree, and an attach wants
thousands of blocks.  Branches to other code always have a rel32 and compares an imm32, so code
depends on the addresses in those fields alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import capstone
import keystone

from optpolined.addresses import GuestVirtual
from optpolined.codegen.errors import ReachError
from optpolined.codegen.forms import MAX_LEAVES, Code
from optpolined.codegen.source import source
from optpolined.x86 import Register

__all__ = ("Field", "Template", "TemplateMaker", "skeleton")

_ADDRESS_END = 1 << 64

# Where templates are assembled, and placeholders for the values.  All are different; no two are so
# near that keystone could choose a rel8 or an imm8; none is a mask of one bit or within a block.
_AT = GuestVirtual(0xFFFFFFFFC0000000)
_STUB = GuestVirtual(0xFFFFFFFFA0000000)
_RECORD = 0x1122334455667788
_KEY_TABLE = 0x2233445566778811
_TARGETS = tuple(GuestVirtual(0xFFFFFFFF81000000 + i * 0x10000) for i in range(MAX_LEAVES))


@dataclass(frozen=True, slots=True)
class Field:
    """The place of a value in a template.

    ``offset`` and ``size`` are in bytes.  ``value`` is the index in (record, key table, learning
    stub, targets...).  A branch counts from its ``end``, in bytes from the block's start; None: no
    branch.
    """

    offset: int
    size: int
    value: int
    end: int | None


@dataclass(frozen=True, slots=True)
class Template:
    """The code of one shape of block, and the places of its addresses."""

    code: bytes
    fields: tuple[Field, ...]

    def fill(self, at: GuestVirtual, values: Sequence[int]) -> bytes:
        """Return the block at ``at`` with ``values``: record, key table, learning stub, targets.

        :raise ReachError: a branch cannot reach its destination.
        """
        code = bytearray(self.code)
        for field in self.fields:
            value = values[field.value]
            if field.end is not None:
                end = at + field.end
                if not -(1 << 31) <= value - end < 1 << 31:
                    raise ReachError(GuestVirtual(value), GuestVirtual(end))
                value -= end
            value &= (1 << (8 * field.size)) - 1
            code[field.offset : field.offset + field.size] = value.to_bytes(field.size, "little")
        return bytes(code)


def skeleton(form: Code) -> Code:
    """Return the form that names the template of ``form``: the same for all forms of its shape."""
    return form.with_targets(_TARGETS[: len(form.targets)])


class TemplateMaker:
    """Makes templates with keystone, and finds their fields with capstone."""

    def __init__(self) -> None:
        self._keystone = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)
        self._capstone = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._capstone.detail = True

    def make(self, form: Code, register: Register) -> Template:
        """Return the template of ``form``, which is a skeleton."""
        text = source(
            form, register=register, record=_RECORD, learn_stub=_STUB, key_table=_KEY_TABLE
        )
        code, _ = self._keystone.asm(text, _AT, as_bytes=True)
        values = (_RECORD, _KEY_TABLE, _STUB, *form.targets)
        places = {value: place for place, value in enumerate(values)}
        fields = []
        for instruction in self._capstone.disasm(code, _AT):
            # Other immediates are the same in all blocks of the shape: bits of the key, and
            # branches within the block, which move with it.
            place = places.get(_immediate(instruction))
            if place is None:
                continue
            start = instruction.address - _AT
            fields.append(
                Field(
                    offset=start + instruction.imm_offset,
                    size=instruction.imm_size,
                    value=place,
                    end=start + instruction.size if _is_branch(instruction) else None,
                )
            )
        return Template(code, tuple(fields))


def _immediate(instruction: capstone.CsInsn) -> int:
    """Return the last operand as a u64; -1 if it is not an immediate."""
    last = instruction.operands[-1]
    return last.imm % _ADDRESS_END if last.type == capstone.CS_OP_IMM else -1


def _is_branch(instruction: capstone.CsInsn) -> bool:
    return bool(instruction.group(capstone.CS_GRP_BRANCH_RELATIVE))
