"""Writes forms as source text for keystone.

A block is a dispatch part, which its form decides, and the miss way, which ends every block.  Where
REG is the register of the target, SCR is r11, or r10 where REG is r11:

    miss:
    push   SCR                      the learning stub counts by target, then takes the thunk
    movabs SCR, record
    jmp    learn_stub

Every register but SCR on the way to the learning stub is as at entry; only the flags change.

A chain has for each target in turn, here and below as an imm32 that extends by sign to 64 bits:

    cmp    REG, target
    je     target

and for each target of a chain that counts its hits:

    cmp    REG, target
    jne    next
    push   SCR
    movabs SCR, record
    inc    dword ptr gs:[SCR + 60]  one instruction: an interrupt cannot tear it
    pop    SCR
    jmp    target
    next:

A tree by target goes to one half of its targets at each step, and a tree by key takes one bit of
the key at each step, the highest first.  ``bit`` is a mask and KEY the lower half of the key's
register.  Where no leaf is on one side of a bit, that side is ``miss``:

    cmp    REG, first target of the upper half      test   KEY, bit
    jae    upper                                    jne    set
    ... the lower half                              ... the leaves where it is clear
    upper:                                          set:
    ... the upper half                              ... the leaves where it is set

Their leaves, the last of which needs no jmp, check the target whatever led there:

    cmp    REG, target
    je     target
    jmp    miss

To learn keys, where BASE is rax, or rcx where REG is rax:

    push   SCR
    push   BASE
    mov    SCR, KEY                 the lower halves
    shr    SCR, shift
    and    SCR, mask
    movabs BASE, key_table
    mov    gs:[BASE + 4*SCR], REG   the lower half, in one instruction
    pop    BASE
    pop    SCR
"""

from collections.abc import Iterator, Sequence
from itertools import count

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Chain, Code, Key, Keyed, LearnKeys, Tree
from optpolined.x86 import Register

__all__ = (
    "HITS_OFFSET",
    "direct_jump",
    "lower_half",
    "note_key",
    "scratch_register",
    "source",
)

HITS_OFFSET = 60
"""``offsetof(struct optp_record, hits)`` in guest/module/optpoline_abi.h, in bytes."""

_AWAY = "jmp miss"


def scratch_register(register: Register) -> Register:
    """Return the register that carries the record to the learning stub of ``register``."""
    return Register.R10 if register is Register.R11 else Register.R11


def lower_half(register: Register) -> str:
    """Return the name of the lower 32 bits of ``register``."""
    name = register.name.lower()
    return f"{name}d" if register >= Register.R8 else f"e{name[1:]}"


def source(
    form: Code,
    *,
    register: Register,
    record: int,
    learn_stub: GuestVirtual,
    key_table: int = 0,
) -> str:
    """Return the block of ``form`` in Intel syntax; the module's docstring explains it."""
    reg = register.name.lower()
    scratch = scratch_register(register).name.lower()
    match form:
        case Chain(targets, counts_hits=True):
            dispatch = _counted_chain(targets, reg, scratch, record)
        case Chain(targets):
            dispatch = (line for target in targets for line in direct_jump(reg, target))
        case Tree(targets):
            dispatch = _tree(targets, reg, count())
        case Keyed(key, leaves):
            dispatch = _keyed(leaves, reg, key, key.bits, count())
        case LearnKeys(key):
            dispatch = note_key(key, register, key_table)
    lines = list(dispatch)
    if lines and lines[-1] == _AWAY:  # the miss way follows
        lines.pop()
    lines += ["miss:", f"push {scratch}", f"movabs {scratch}, {record:#x}", f"jmp {learn_stub:#x}"]
    return "\n".join(lines)


def direct_jump(reg: str, target: GuestVirtual) -> Iterator[str]:
    """Jump to ``target`` where ``reg`` names it; go on otherwise."""
    yield f"cmp {reg}, {target:#x}"
    yield f"je {target:#x}"


def _counted_chain(
    targets: Sequence[GuestVirtual], reg: str, scratch: str, record: int
) -> Iterator[str]:
    for position, target in enumerate(targets):
        yield f"cmp {reg}, {target:#x}"
        yield f"jne next{position}"
        yield f"push {scratch}"
        yield f"movabs {scratch}, {record:#x}"
        yield f"inc dword ptr gs:[{scratch} + {HITS_OFFSET}]"
        yield f"pop {scratch}"
        yield f"jmp {target:#x}"
        yield f"next{position}:"


def _tree(targets: Sequence[GuestVirtual], reg: str, numbers: Iterator[int]) -> Iterator[str]:
    if len(targets) == 1:
        yield from direct_jump(reg, targets[0])
        yield _AWAY
        return
    middle = len(targets) // 2
    upper = f"upper{next(numbers)}"
    yield f"cmp {reg}, {targets[middle]:#x}"
    yield f"jae {upper}"
    yield from _tree(targets[:middle], reg, numbers)
    yield f"{upper}:"
    yield from _tree(targets[middle:], reg, numbers)


def _keyed(
    leaves: Sequence[tuple[int, GuestVirtual]],
    reg: str,
    key: Key,
    bits: int,
    numbers: Iterator[int],
) -> Iterator[str]:
    """Write the tree over the lowest ``bits`` of the key; there is at least one leaf."""
    if bits == 0:
        ((_, target),) = leaves
        yield from direct_jump(reg, target)
        yield _AWAY
        return
    bit = bits - 1
    lower = [leaf for leaf in leaves if not leaf[0] >> bit & 1]
    upper = [leaf for leaf in leaves if leaf[0] >> bit & 1]
    yield f"test {lower_half(key.register)}, {1 << (key.shift + bit):#x}"
    if not upper:
        yield "jne miss"
        yield from _keyed(lower, reg, key, bit, numbers)
    elif not lower:
        yield "je miss"
        yield from _keyed(upper, reg, key, bit, numbers)
    else:
        label = f"set{next(numbers)}"
        yield f"jne {label}"
        yield from _keyed(lower, reg, key, bit, numbers)
        yield f"{label}:"
        yield from _keyed(upper, reg, key, bit, numbers)


def note_key(key: Key, register: Register, key_table: int) -> Iterator[str]:
    """Note the target, which ``register`` holds, at the key's index in the site's key table."""
    scratch = scratch_register(register)
    base = (Register.RCX if register is Register.RAX else Register.RAX).name.lower()
    index = lower_half(scratch)
    yield f"push {scratch.name.lower()}"
    yield f"push {base}"
    yield f"mov {index}, {lower_half(key.register)}"
    yield f"shr {index}, {key.shift}"
    yield f"and {index}, {(1 << key.bits) - 1:#x}"
    yield f"movabs {base}, {key_table:#x}"
    yield f"mov dword ptr gs:[{base} + {scratch.name.lower()}*4], {lower_half(register)}"
    yield f"pop {base}"
    yield f"pop {scratch.name.lower()}"
