"""Forms become machine code; a site's instruction gets another target.

The block of a chain, where SCR is r11, or r10 where REG is r11:

    cmp    REG, target              each target in turn; the imm32 extends by sign to 64 bits
    je     target
    ...
    push   SCR                      miss: the learning stub counts by target, then takes the thunk
    movabs SCR, record
    jmp    learn_stub

and each target of a chain that counts its hits:

    cmp    REG, target
    jne    next
    push   SCR
    movabs SCR, record
    inc    dword ptr gs:[SCR + 60]  one instruction: an interrupt cannot tear it
    pop    SCR
    jmp    target
    next:

Every register but SCR on the way to the learning stub is as at entry; only the flags change.

Keystone needs 100 us or more for a block and an attach wants thousands, so it assembles each shape
(register, number of targets, hits counted or not) once, and the addresses are filled in.  Branches
to other code always have a rel32 and compares an imm32, so the size depends on the shape alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import capstone
import keystone

from optpolined.addresses import GuestVirtual
from optpolined.codegen.errors import AssembleError, DecodeError, ReachError
from optpolined.codegen.forms import Chain
from optpolined.x86 import Register

__all__ = (
    "HITS_OFFSET",
    "MAX_TARGETS",
    "Assembler",
    "Field",
    "Template",
    "branch_target",
    "scratch_register",
    "site_instruction",
    "source",
)

MAX_TARGETS = 16
"""The longest chain, in targets."""

HITS_OFFSET = 60
"""``offsetof(struct optp_record, hits)`` in guest/module/optpoline_abi.h, in bytes."""

_ADDRESS_END = 1 << 64
_TOP_2_GIB = _ADDRESS_END - (1 << 31)

# Where templates are assembled and what stands for the values: all different, none so near to
# another that keystone could pick a rel8 or an imm8.
_TEMPLATE_AT = GuestVirtual(0xFFFFFFFFC0000000)
_TEMPLATE_STUB = GuestVirtual(0xFFFFFFFFA0000000)
_TEMPLATE_RECORD = 0x1122334455667788
_TEMPLATE_TARGETS = tuple(
    GuestVirtual(0xFFFFFFFF81000000 + i * 0x10000) for i in range(MAX_TARGETS)
)

_CALL_REL32 = 0xE8
_JMP_REL32 = 0xE9
_CS_PREFIX = 0x2E


def scratch_register(register: Register) -> Register:
    """The register that carries the record to the learning stub of ``register``."""
    return Register.R10 if register is Register.R11 else Register.R11


def source(form: Chain, *, register: Register, record: int, learn_stub: GuestVirtual) -> str:
    """The block of ``form`` as keystone's Intel syntax; the module's docstring explains it."""
    reg = register.name.lower()
    scratch = scratch_register(register).name.lower()
    lines = []
    for position, target in enumerate(form.targets):
        lines.append(f"cmp {reg}, {target:#x}")
        if form.counts_hits:
            lines += [
                f"jne next{position}",
                f"push {scratch}",
                f"movabs {scratch}, {record:#x}",
                f"inc dword ptr gs:[{scratch} + {HITS_OFFSET}]",
                f"pop {scratch}",
                f"jmp {target:#x}",
                f"next{position}:",
            ]
        else:
            lines.append(f"je {target:#x}")
    lines += [f"push {scratch}", f"movabs {scratch}, {record:#x}", f"jmp {learn_stub:#x}"]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Field:
    """Where a value stands in a template.

    ``offset`` and ``size`` are in bytes.  ``value`` is the index in (targets..., record, learning
    stub).  A branch counts from its ``end``, in bytes from the block's start; None: no branch.
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
        """The block at ``at`` with ``values``: the targets, the record, the learning stub.

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


class Assembler:
    """Assembles blocks, and keeps the template of each shape that it has seen.

    There are at most 15 registers x 33 shapes of chain.
    """

    def __init__(self) -> None:
        self._keystone = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)
        self._capstone = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._capstone.detail = True
        self._templates: dict[tuple[Register, int, bool], Template] = {}

    def assemble(
        self,
        form: Chain,
        *,
        register: Register,
        at: GuestVirtual,
        record: int,
        learn_stub: GuestVirtual,
    ) -> bytes:
        """The code of the block of ``form`` that will stand at ``at``.

        ``record`` is the percpu offset of the site's ``struct optp_record``, any u64;
        ``learn_stub`` is the learning stub of ``register``.  ``Decoder.verify`` checks the result.

        :raise AssembleError: too many targets, a target twice or outside the top 2 GiB (which is
            where a sign-extended imm32 names an address of the kernel), hits to be counted of no
            targets, rsp, or an address or record that is no u64.
        :raise ReachError: ``at`` is more than 2 GiB away from a target or the learning stub.
        """
        template = self._template(form, register)
        _check_targets(form.targets)
        for value in (at, learn_stub, record):
            if not 0 <= value < _ADDRESS_END:
                raise AssembleError(f"{value:#x} does not fit 64 bits")
        if at + len(template.code) > _ADDRESS_END:
            raise AssembleError(f"a block at {at:#x} would pass the end of the address space")
        return template.fill(at, (*form.targets, record, learn_stub))

    def block_size(self, form: Chain, register: Register) -> int:
        """The size of the block of ``form``, in bytes; it does not depend on the addresses.

        :raise AssembleError: there is no block of such a shape.
        """
        return len(self._template(form, register).code)

    def _template(self, form: Chain, register: Register) -> Template:
        shape = (register, len(form.targets), form.counts_hits)
        template = self._templates.get(shape)
        if template is None:
            _check_shape(form, register)
            template = self._templates[shape] = self._make_template(*shape)
        return template

    def _make_template(self, register: Register, nr_targets: int, counts_hits: bool) -> Template:
        form = Chain(_TEMPLATE_TARGETS[:nr_targets], counts_hits)
        text = source(form, register=register, record=_TEMPLATE_RECORD, learn_stub=_TEMPLATE_STUB)
        code, _ = self._keystone.asm(text, _TEMPLATE_AT, as_bytes=True)
        values = (*form.targets, _TEMPLATE_RECORD, _TEMPLATE_STUB)
        fields = []
        for instruction in self._capstone.disasm(code, _TEMPLATE_AT):
            # Immediates of one byte are the jne within the block, which moves with it.
            if instruction.imm_size < 4:
                continue
            start = instruction.address - _TEMPLATE_AT
            fields.append(
                Field(
                    offset=start + instruction.imm_offset,
                    size=instruction.imm_size,
                    value=values.index(instruction.operands[-1].imm % _ADDRESS_END),
                    end=start + instruction.size if _is_branch(instruction) else None,
                )
            )
        return Template(code, tuple(fields))


def _is_branch(instruction: capstone.CsInsn) -> bool:
    return bool(instruction.group(capstone.CS_GRP_BRANCH_RELATIVE))


def _check_shape(form: Chain, register: Register) -> None:
    if register is Register.RSP:
        raise AssembleError("rsp has no retpoline thunk, so no block either")
    if len(form.targets) > MAX_TARGETS:
        raise AssembleError(f"{len(form.targets)} targets: a chain has at most {MAX_TARGETS}")
    if form.counts_hits and not form.targets:
        raise AssembleError("a chain of no targets has no hits to count")


def _check_targets(targets: tuple[GuestVirtual, ...]) -> None:
    for target in targets:
        if not _TOP_2_GIB <= target < _ADDRESS_END:
            raise AssembleError(f"target {target:#x} is not in the top 2 GiB")
    if len(set(targets)) != len(targets):
        twice = next(target for target in targets if targets.count(target) > 1)
        raise AssembleError(f"target {twice:#x} is in the chain twice")


def _split_site(original: bytes, at: GuestVirtual) -> tuple[bytes, int]:
    """The prefix and opcode of a site's instruction, and its rel32."""
    opcode = original[:-4]
    without_prefix = opcode[1:] if opcode[:1] == bytes((_CS_PREFIX,)) else opcode
    if without_prefix not in (bytes((_CALL_REL32,)), bytes((_JMP_REL32,))):
        raise DecodeError(at, f"{original[:16].hex(' ')} is no call or jmp rel32")
    return opcode, int.from_bytes(original[-4:], "little", signed=True)


def site_instruction(original: bytes, at: GuestVirtual, target: GuestVirtual) -> bytes:
    """The call or jmp ``original`` that stands at ``at``, with another target.

    ``original`` is ``e8`` or ``e9`` and a rel32, with or without the cs prefix ``2e`` that gcc pads
    with (-mindirect-branch-cs-prefix): 5 or 6 bytes, and so is the result.

    :raise DecodeError: ``original`` is no such instruction.
    :raise ReachError: ``target`` is out of reach.
    """
    opcode, _ = _split_site(original, at)
    end = at + len(original)
    distance = target - end
    if not (-(1 << 31) <= distance < 1 << 31 and 0 <= target < _ADDRESS_END):
        raise ReachError(target, GuestVirtual(end))
    return opcode + distance.to_bytes(4, "little", signed=True)


def branch_target(instruction: bytes, at: GuestVirtual) -> GuestVirtual:
    """Where the call or jmp ``instruction``, which stands at ``at``, goes.

    :raise DecodeError: it is no call or jmp that ``site_instruction`` takes, or it leaves the
        address space.
    """
    _, distance = _split_site(instruction, at)
    target = at + len(instruction) + distance
    if not 0 <= target < _ADDRESS_END:
        raise DecodeError(at, "its target is outside the address space")
    return GuestVirtual(target)
