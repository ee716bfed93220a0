"""Turns forms into machine code, and gives a site's instruction another target.

``source`` says what a block consists of and ``template`` how it is assembled quickly.  The size of
a block depends on its shape alone, which is all of its form but the addresses, and its register.
"""

from functools import lru_cache

from optpolined.addresses import GuestVirtual
from optpolined.codegen.check import check_shape, check_targets
from optpolined.codegen.errors import AssembleError, DecodeError, ReachError
from optpolined.codegen.forms import MAX_TARGETS, Code, Keyed, LearnKeys
from optpolined.codegen.source import HITS_OFFSET, scratch_register, source
from optpolined.codegen.template import TemplateMaker, skeleton
from optpolined.x86 import Register

__all__ = (
    "HITS_OFFSET",
    "MAX_TARGETS",
    "Assembler",
    "branch_target",
    "scratch_register",
    "site_instruction",
    "source",
)

_ADDRESS_END = 1 << 64

_CALL_REL32 = 0xE8
_JMP_REL32 = 0xE9
_CS_PREFIX = 0x2E

# All chains (15 registers x 33 shapes) and 529 others.
_TEMPLATES_KEPT = 1024


class Assembler:
    """Assembles blocks, and keeps the templates of the last 1024 shapes."""

    def __init__(self) -> None:
        self._template = lru_cache(_TEMPLATES_KEPT)(TemplateMaker().make)

    def assemble(
        self,
        form: Code,
        *,
        register: Register,
        at: GuestVirtual,
        record: int,
        learn_stub: GuestVirtual,
        key_table: int = 0,
    ) -> bytes:
        """Return the code of the block of ``form`` that will stand at ``at``.

        ``record`` is the percpu offset of the site's ``struct optp_record``, any u64;
        ``learn_stub`` is the learning stub of ``register``.  ``key_table`` is the percpu offset of
        the key table of ``LearnKeys``, and 0 for all other forms.  No table is at 0, because the
        kernel keeps its stack canary there.  ``Decoder.verify`` checks the result.

        :raise AssembleError: ``check_shape`` or ``check_targets`` refuses the form; an address or
            record does not fit a u64; or a key table is given to another form, or is missing.
        :raise ReachError: ``at`` is more than 2 GiB away from a target or the learning stub.
        """
        check_shape(form, register)
        template = self._template(skeleton(form), register)
        check_targets(form.targets, each_once=not isinstance(form, Keyed))
        if isinstance(form, LearnKeys) != (key_table != 0):
            raise AssembleError("a form that learns keys needs a key table, no other has one")
        for value in (at, learn_stub, record, key_table):
            if not 0 <= value < _ADDRESS_END:
                raise AssembleError(f"{value:#x} does not fit 64 bits")
        if at + len(template.code) > _ADDRESS_END:
            raise AssembleError(f"a block at {at:#x} would pass the end of the address space")
        return template.fill(at, (record, key_table, learn_stub, *form.targets))

    def block_size(self, form: Code, register: Register) -> int:
        """Return the size of the block of ``form``, in bytes; addresses do not change it.

        :raise AssembleError: there is no block of such a shape.
        """
        check_shape(form, register)
        return len(self._template(skeleton(form), register).code)


def _split_site(original: bytes, at: GuestVirtual) -> tuple[bytes, int]:
    """Return the prefix and opcode of a site's instruction, and its rel32."""
    opcode = original[:-4]
    without_prefix = opcode[1:] if opcode[:1] == bytes((_CS_PREFIX,)) else opcode
    if without_prefix not in (bytes((_CALL_REL32,)), bytes((_JMP_REL32,))):
        raise DecodeError(at, f"{original[:16].hex(' ')} is no call or jmp rel32")
    return opcode, int.from_bytes(original[-4:], "little", signed=True)


def site_instruction(original: bytes, at: GuestVirtual, target: GuestVirtual) -> bytes:
    """Return the call or jmp ``original`` that stands at ``at`` with another target.

    ``original`` is ``e8`` or ``e9`` and a rel32, with or without the cs prefix ``2e`` that gcc pads
    with (-mindirect-branch-cs-prefix): 5 or 6 bytes, and so is the result.

    :raise DecodeError: ``original`` is another instruction.
    :raise ReachError: ``target`` is out of reach.
    """
    opcode, _ = _split_site(original, at)
    end = at + len(original)
    distance = target - end
    if not (-(1 << 31) <= distance < 1 << 31 and 0 <= target < _ADDRESS_END):
        raise ReachError(target, GuestVirtual(end))
    return opcode + distance.to_bytes(4, "little", signed=True)


def branch_target(instruction: bytes, at: GuestVirtual) -> GuestVirtual:
    """Return the target of the call or jmp ``instruction``, which stands at ``at``.

    :raise DecodeError: ``site_instruction`` would refuse it, or its target is outside the address
        space.
    """
    _, distance = _split_site(instruction, at)
    target = at + len(instruction) + distance
    if not 0 <= target < _ADDRESS_END:
        raise DecodeError(at, "its target is outside the address space")
    return GuestVirtual(target)
