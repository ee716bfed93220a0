"""Turns the bytes of a block into a form again.

The bytes may come from the guest's memory, so nothing about them is trusted: capstone says what
each instruction means, ``parse`` accepts only what ``source`` describes, and the form that
results is assembled again and must give the very same bytes.  The last step refuses other encodings
of the same meaning; the first two keep ``verify`` independent of keystone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import capstone

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import Assembler
from optpolined.codegen.errors import AssembleError, DecodeError, VerifyError
from optpolined.codegen.forms import MAX_LEAVES, MAX_TARGETS, Code
from optpolined.codegen.parse import MISS_INSTRUCTIONS, DispatchParser, parse_miss
from optpolined.codegen.source import scratch_register
from optpolined.x86 import Register

__all__ = ("BLOCK_BYTES_MAX", "DecodedBlock", "Decoder")

# Decoded at once: a block of a few targets, and not the rest of the arena after it.
_INSTRUCTIONS_AT_ONCE = 12
_LONGEST_INSTRUCTION = 15

# A target of a chain takes 7 instructions where its hits are counted.  A tree has fewer steps than
# leaves, each of 2 instructions, and leaves of 3.
_MOST_INSTRUCTIONS = max(7 * MAX_TARGETS, 5 * MAX_LEAVES) + MISS_INSTRUCTIONS

BLOCK_BYTES_MAX = max(33 * MAX_TARGETS, (7 + 6) * (MAX_LEAVES - 1) + (7 + 6 + 5) * MAX_LEAVES) + 17
"""No block is longer: the same parts, in bytes, had every branch a rel32."""


@dataclass(frozen=True, slots=True)
class DecodedBlock:
    """A block that stands in memory.

    ``record`` is the percpu offset of the site's ``struct optp_record``, ``key_table`` that of its
    key table, 0 where the form has none; ``size`` is in bytes.
    """

    form: Code
    register: Register
    record: int
    size: int
    key_table: int = 0


class Decoder:
    """Decodes blocks with capstone, and assembles them again with ``assembler`` to be sure."""

    def __init__(self, assembler: Assembler) -> None:
        self._assembler = assembler
        self._capstone = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)

    def decode_block(
        self, code: bytes, at: GuestVirtual, learn_stubs: Mapping[GuestVirtual, Register]
    ) -> DecodedBlock:
        """Decode the block at the start of ``code``, read at ``at``; more bytes may follow.

        Accepts what ``Assembler.assemble`` emits for one of ``learn_stubs`` and nothing else, and
        looks at a bounded number of instructions, whatever the length of ``code``.

        :raise DecodeError: ``code`` starts with anything else.
        """
        lines = self._lines(code, at)
        dispatch, way = lines[:-MISS_INSTRUCTIONS], lines[-MISS_INSTRUCTIONS:]
        miss = parse_miss("".join(way), int(dispatch[-1].partition(" ")[0], 0) if dispatch else at)
        if miss is None:
            last = way[-1].rstrip() if way else f"{at:#x}"
            raise DecodeError(at, f"no way to a learning stub ends at {last}")
        register = learn_stubs.get(miss.learn_stub)
        if register is None:
            raise DecodeError(at, f"{miss.learn_stub:#x} is no learning stub")
        if miss.scratch != scratch_register(register).name.lower():
            raise DecodeError(at, f"the stub of {register.name} gets its record in another scratch")
        form, key_table = DispatchParser("".join(dispatch), at, miss, register).parse()
        block = DecodedBlock(form, register, miss.record, miss.end - at, key_table)
        self._check_encoding(code[: block.size], at, block, miss.learn_stub)
        return block

    def verify(
        self,
        code: bytes,
        form: Code,
        *,
        register: Register,
        at: GuestVirtual,
        record: int,
        learn_stub: GuestVirtual,
        key_table: int = 0,
    ) -> None:
        """Check that ``code`` is the block that ``Assembler.assemble`` was asked for.

        :raise VerifyError: it decodes as another block, or not at all.
        """
        try:
            block = self.decode_block(code, at, {learn_stub: register})
        except DecodeError as error:
            raise VerifyError(at, error.reason) from error
        wanted = DecodedBlock(form, register, record, len(code), key_table)
        if block != wanted:
            raise VerifyError(at, f"{block} instead of {wanted}")

    def _lines(self, code: bytes, at: GuestVirtual) -> list[str]:
        """Return the instructions up to the first movabs and jmp in a row, the end of a block.

        ``parse`` shows what a line looks like.
        """
        lines: list[str] = []
        end = int(at)
        previous = ""
        while len(lines) < _MOST_INSTRUCTIONS:
            window = code[end - at : end - at + _INSTRUCTIONS_AT_ONCE * _LONGEST_INSTRUCTION]
            decoded = list(self._capstone.disasm_lite(window, end, _INSTRUCTIONS_AT_ONCE))
            if not decoded:
                break
            for _, size, mnemonic, operands in decoded:
                end += size
                lines.append(f"{end:#x} {mnemonic} {operands}\n")
                if mnemonic == "jmp" and previous == "movabs":
                    return lines
                previous = mnemonic
        return lines

    def _check_encoding(
        self, code: bytes, at: GuestVirtual, block: DecodedBlock, learn_stub: GuestVirtual
    ) -> None:
        try:
            canonical = self._assembler.assemble(
                block.form,
                register=block.register,
                at=at,
                record=block.record,
                learn_stub=learn_stub,
                key_table=block.key_table,
            )
        except AssembleError as error:
            raise DecodeError(at, str(error)) from error
        if code != canonical:
            raise DecodeError(at, "its instructions are encoded in another way")
