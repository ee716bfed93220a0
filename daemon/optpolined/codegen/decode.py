r"""The bytes of a block become a form again.

What is decoded may come from the guest's memory, so nothing about it is believed: capstone's text
says what each instruction means, two patterns accept only the text of what ``assemble`` describes,
and the form that results is assembled again and must give the very same bytes.  The last step
refuses other encodings of the same meaning; the first two keep ``verify`` independent of keystone.

The text has a line for each instruction, which begins with the address where it ends::

    0xffffffffc0000006 cmp rax, -0x7f000000
    0xffffffffc000000c je 0xffffffff81000000
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import capstone

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import HITS_OFFSET, MAX_TARGETS, Assembler, scratch_register
from optpolined.codegen.errors import AssembleError, DecodeError, VerifyError
from optpolined.codegen.forms import Chain
from optpolined.x86 import Register

__all__ = ("BLOCK_BYTES_MAX", "Block", "Decoder")

_ADDRESS_END = 1 << 64

_NUMBER = r"-?(?:0x[0-9a-f]+|[0-9])"

# One target.  The branch of a hit that is counted must end where the jne goes.
_ARM = re.compile(
    rf"""\S+ cmp (?P<register>\w+), (?P<compared>{_NUMBER})
(?:\S+ je (?P<direct>{_NUMBER})
|\S+ jne (?P<next>{_NUMBER})
\S+ push (?P<scratch>\w+)
\S+ movabs (?P=scratch), (?P<record>{_NUMBER})
\S+ inc dword ptr gs:\[(?P=scratch) \+ {HITS_OFFSET:#x}\]
\S+ pop (?P=scratch)
(?P=next) jmp (?P<counted>{_NUMBER})
)"""
)

# The way to the learning stub, which ends the block.
_MISS = re.compile(
    rf"""\S+ push (?P<scratch>\w+)
\S+ movabs (?P=scratch), (?P<record>{_NUMBER})
(?P<end>{_NUMBER}) jmp (?P<stub>{_NUMBER})
"""
)

# Decoded at once: a block of a few targets, and not the rest of the arena after it.
_INSTRUCTIONS_AT_ONCE = 12
_LONGEST_INSTRUCTION = 15

# A target takes 7 instructions where its hits are counted, a miss 3.
_MOST_INSTRUCTIONS = 7 * MAX_TARGETS + 3

BLOCK_BYTES_MAX = 33 * MAX_TARGETS + 17
"""No block is longer: the same two parts, in bytes."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block that stands in memory.

    ``record`` is the percpu offset of the site's ``struct optp_record``; ``size`` is in bytes.
    """

    form: Chain
    register: Register
    record: int
    size: int


class Decoder:
    """Decodes blocks with capstone, and assembles them again with ``assembler`` to be sure."""

    def __init__(self, assembler: Assembler) -> None:
        self._assembler = assembler
        self._capstone = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)

    def decode_block(
        self, code: bytes, at: GuestVirtual, learn_stubs: Mapping[GuestVirtual, Register]
    ) -> Block:
        """The block at the start of ``code``, which was read at ``at``; more bytes may follow it.

        Accepts what ``Assembler.assemble`` emits for one of ``learn_stubs`` and nothing else, and
        looks at a bounded number of instructions, whatever the length of ``code``.

        :raise DecodeError: anything else stands there.
        """
        text = self._text(code, at)
        arms = []
        position = 0
        while arm := _ARM.match(text, position):
            arms.append(arm)
            position = arm.end()
        miss = _MISS.fullmatch(text, position)
        if miss is None:
            line = text[position:].partition("\n")[0]
            raise DecodeError(at, f"at {line}" if line else "it is cut off or no code")

        learn_stub = _address(miss["stub"])
        register = learn_stubs.get(learn_stub)
        if register is None:
            raise DecodeError(at, f"{learn_stub:#x} is no learning stub")
        if miss["scratch"] != scratch_register(register).name.lower():
            raise DecodeError(at, f"the stub of {register.name} gets its record in another scratch")
        form = _chain(arms, miss, register, at)
        block = Block(form, register, _address(miss["record"]), int(miss["end"], 0) - at)
        self._check_encoding(code[: block.size], at, block, learn_stub)
        return block

    def verify(
        self,
        code: bytes,
        form: Chain,
        *,
        register: Register,
        at: GuestVirtual,
        record: int,
        learn_stub: GuestVirtual,
    ) -> None:
        """Check that ``code`` is the block that ``Assembler.assemble`` was asked for.

        :raise VerifyError: it decodes as something else, or not at all.
        """
        try:
            block = self.decode_block(code, at, {learn_stub: register})
        except DecodeError as error:
            raise VerifyError(at, error.reason) from error
        wanted = Block(form, register, record, len(code))
        if block != wanted:
            raise VerifyError(at, f"{block} instead of {wanted}")

    def _text(self, code: bytes, at: GuestVirtual) -> str:
        """The instructions up to the first movabs and jmp in a row, which is the end of a block."""
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
                    return "".join(lines)
                previous = mnemonic
        return "".join(lines)

    def _check_encoding(
        self, code: bytes, at: GuestVirtual, block: Block, learn_stub: GuestVirtual
    ) -> None:
        try:
            canonical = self._assembler.assemble(
                block.form,
                register=block.register,
                at=at,
                record=block.record,
                learn_stub=learn_stub,
            )
        except AssembleError as error:
            raise DecodeError(at, str(error)) from error
        if code != canonical:
            raise DecodeError(at, "its instructions are encoded in another way")


def _chain(
    arms: list[re.Match[str]], miss: re.Match[str], register: Register, at: GuestVirtual
) -> Chain:
    """The form of ``arms``, which must agree with each other and with ``miss``."""
    name = register.name.lower()
    counts_hits = bool(arms) and arms[0]["direct"] is None
    targets = []
    for arm in arms:
        target = _address(arm["compared"])
        if arm["register"] != name:
            raise DecodeError(at, f"it compares {arm['register']}, but its stub is for {name}")
        if _address(arm["direct"] or arm["counted"]) != target:
            raise DecodeError(at, f"the branch for {target:#x} goes elsewhere")
        if counts_hits != (arm["direct"] is None):
            raise DecodeError(at, "it counts the hits of some targets only")
        if counts_hits and (arm["scratch"], arm["record"]) != (miss["scratch"], miss["record"]):
            raise DecodeError(at, "it counts hits and misses in different ways")
        targets.append(target)
    return Chain(tuple(targets), counts_hits)


def _address(text: str) -> GuestVirtual:
    """An immediate as a u64; capstone prints a sign where the instruction extends one."""
    return GuestVirtual(int(text, 0) % _ADDRESS_END)
