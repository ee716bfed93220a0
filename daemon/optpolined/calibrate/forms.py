"""Makes the code of a call site in each form, in this process.

The forms are the project's own: blocks come from codegen, the learning stub is that of optpoline.ko
as it is built, the inline site is what the gcc plugin emits.  The thunk is the kernel's retpoline
(arch/x86/lib/retpoline.S).  The target is in rax, the key in rcx.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import keystone

from optpolined.addresses import GuestVirtual
from optpolined.calibrate.native import Code as Memory
from optpolined.calibrate.stub import LearnStub
from optpolined.codegen.assemble import Assembler
from optpolined.codegen.forms import LEARNING, Chain, Code, Key, Keyed, Tree
from optpolined.x86 import Register

__all__ = (
    "CHAIN",
    "DIRECT",
    "DISPATCH",
    "FORMS",
    "INLINE",
    "INLINE_MEMORY",
    "KEYED_16",
    "LAST_OF_16",
    "MISS_1",
    "MISS_16",
    "ONE_TARGET",
    "RETPOLINE",
    "STEPS",
    "THUNK",
    "TREE",
    "TREE_OF_16",
    "Kit",
    "Maker",
    "Site",
    "SiteCode",
)

THUNK: Final = """
call over
spin: pause
lfence
jmp spin
over: mov [rsp], rax
ret
"""
_BLOCK_ALIGN: Final = 32
_RECORD_BYTES: Final = 64


class Kit:
    """The thunk, the learning stub, and what makes blocks, in the memory of one program.

    ``data`` is another memory, because a CPU takes writes beside code for code that changes
    itself, and flushes its pipeline.
    """

    def __init__(self, memory: Memory, data: Memory, stub: LearnStub) -> None:
        self.memory = memory
        self.data = data
        self._keystone = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)
        self._assembler = Assembler()
        self.thunk = memory.place(self.assemble(THUNK, GuestVirtual(0)), 64)
        self._learn_stub = self._place_learn_stub(stub)

    def assemble(self, text: str, at: GuestVirtual) -> bytes:
        """Assemble Intel syntax at its address."""
        code, _ = self._keystone.asm(text, at, as_bytes=True)
        return bytes(code)

    def block(self, form: Code) -> GuestVirtual:
        """Place a block in memory, with a record of its own."""
        record = self.data.reserve(_RECORD_BYTES, _RECORD_BYTES)
        size = self._assembler.block_size(form, Register.RAX)
        at = self.memory.reserve(size, _BLOCK_ALIGN)
        code = self._assembler.assemble(
            form, register=Register.RAX, at=at, record=record, learn_stub=self._learn_stub
        )
        self.memory.write(at, code)
        return at

    def _place_learn_stub(self, stub: LearnStub) -> GuestVirtual:
        at = self.memory.reserve(len(stub.code), 64)
        code, end = bytearray(stub.code), stub.thunk + 4
        code[stub.thunk : end] = (self.thunk - (at + end)).to_bytes(4, "little", signed=True)
        self.memory.write(at, bytes(code))
        return at


@dataclass(frozen=True, slots=True)
class Site:
    """The targets of one site, the hottest first, and another function, which it never calls."""

    targets: Sequence[GuestVirtual]
    other: GuestVirtual

    @property
    def first(self) -> GuestVirtual:
        return self.targets[0]


SiteCode = Callable[[GuestVirtual], bytes]
"""Returns the code of a site when its place is known."""

Maker = Callable[[Kit, Site], SiteCode]
"""Makes what a site needs besides its code."""


def _branch(opcode: int, at: int, target: int) -> bytes:
    return bytes([opcode]) + (target - at - 5).to_bytes(4, "little", signed=True)


def _call(target: GuestVirtual) -> SiteCode:
    return lambda at: _branch(0xE8, at, target)


def _fixed(code: bytes) -> SiteCode:
    return lambda _at: code


def _direct(_kit: Kit, site: Site) -> SiteCode:
    return _call(site.first)


def _indirect(_kit: Kit, _site: Site) -> SiteCode:
    return _fixed(b"\xff\xd0")


def _retpoline(kit: Kit, _site: Site) -> SiteCode:
    return _call(kit.thunk)


def _lfence(_kit: Kit, _site: Site) -> SiteCode:
    return _fixed(b"\x0f\xae\xe8\xff\xd0")


def _trampoline(kit: Kit, site: Site) -> SiteCode:
    at = kit.memory.reserve(8, 8)
    kit.memory.write(at, _branch(0xE9, at, site.first) + b"\xcc\xcc\xcc")
    return _call(at)


def _inline_code(kit: Kit, compare: bytes, target: GuestVirtual) -> SiteCode:
    """Assemble the compare, and the four branches that the plugin emits behind it."""

    def code(at: GuestVirtual) -> bytes:
        branch = at + len(compare) + 2
        return (
            compare
            + b"\x75\x07"
            + _branch(0xE8, branch, target)
            + b"\xeb\x05"
            + _branch(0xE8, branch + 7, kit.thunk)
        )

    return code


def _compare(value: GuestVirtual) -> bytes:
    return b"\x48\x81\xf8" + value.to_bytes(4, "little")


def _inline(kit: Kit, site: Site) -> SiteCode:
    return _inline_code(kit, _compare(site.first), site.first)


def _inline_miss(kit: Kit, site: Site) -> SiteCode:
    return _inline_code(kit, _compare(site.other), site.other)


def _inline_memory(kit: Kit, site: Site) -> SiteCode:
    """The operand has a cache line of its own, as the key of a static call has."""
    operand = kit.data.reserve(64, 64)
    kit.data.write(operand, site.first.to_bytes(8, "little"))
    return _inline_code(kit, b"\x48\x3b\x04\x25" + operand.to_bytes(4, "little"), site.first)


def _out_of_line(form: Callable[[Site], Code]) -> Maker:
    return lambda kit, site: _call(kit.block(form(site)))


def _others(site: Site, count: int) -> tuple[GuestVirtual, ...]:
    """Return addresses that are never called, near those that are."""
    return tuple(GuestVirtual(site.other + place) for place in range(count))


def _keyed(bits: int | None = None) -> Callable[[Site], Code]:
    """Return a maker of trees with a leaf for each of ``1 << bits`` keys, or for each target."""

    def form(site: Site) -> Code:
        key = Key(Register.RCX, 0, bits or max(1, (len(site.targets) - 1).bit_length()))
        targets = site.targets
        leaves = ((index, targets[index % len(targets)]) for index in range(1 << key.bits))
        return Keyed(key, tuple(leaves))

    return form


def _last(site: Site, count: int) -> tuple[GuestVirtual, ...]:
    """``count`` targets, of which the last is called."""
    return (*_others(site, count - 1), site.first)


DIRECT: Final = "direct call, static call inline"
RETPOLINE: Final = "retpoline"
INLINE: Final = "optpoline inline, immediate"
INLINE_MEMORY: Final = "optpoline inline, memory operand"
ONE_TARGET: Final = "optpoline out of line, 1 target"
KEYED_16: Final = "keyed tree, 16 leaves"
MISS_1: Final = "always miss: out of line, 1 target"
MISS_16: Final = "always miss: chain of 16"
CHAIN: Final = "chain"
TREE: Final = "tree by target"
LAST_OF_16: Final = "chain of 16, the last is called"
TREE_OF_16: Final = "tree of 16, one is called"

FORMS: Final[dict[str, Maker]] = {
    DIRECT: _direct,
    "static call trampoline": _trampoline,
    "indirect, no mitigation": _indirect,
    RETPOLINE: _retpoline,
    "lfence; indirect": _lfence,
    INLINE: _inline,
    INLINE_MEMORY: _inline_memory,
    ONE_TARGET: _out_of_line(lambda site: Chain((site.first,))),
    KEYED_16: _out_of_line(_keyed(4)),
    "learning stub": _out_of_line(lambda _site: LEARNING),
    "always miss: inline": _inline_miss,
    MISS_1: _out_of_line(lambda site: Chain(_others(site, 1))),
    MISS_16: _out_of_line(lambda site: Chain(_others(site, 16))),
}
"""What can stand at a site that has one target."""

STEPS: Final[dict[str, Maker]] = {
    LAST_OF_16: _out_of_line(lambda site: Chain(_last(site, 16))),
    TREE_OF_16: _out_of_line(lambda site: Tree(_last(site, 16))),
}
"""The blocks at a site with one target; each of their branches is predicted."""

DISPATCH: Final[dict[str, Maker]] = {
    RETPOLINE: _retpoline,
    ONE_TARGET: FORMS[ONE_TARGET],
    CHAIN: _out_of_line(lambda site: Chain(tuple(site.targets))),
    TREE: _out_of_line(lambda site: Tree(tuple(site.targets))),
    "keyed tree": _out_of_line(_keyed()),
}
"""What can stand at a site that has several; all but the first two know them all."""
