"""What stands at a call site, form by form, in code of this process.

The forms are the project's own: blocks come from codegen, the learning stub from optpoline.ko as it
was built, the inline site is what the gcc plugin emits.  The thunk is the kernel's retpoline
(arch/x86/lib/retpoline.S).  The target is in rax, the key in rcx.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import keystone
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import Assembler
from optpolined.codegen.forms import LEARNING, Chain, Code, Key, Keyed, Tree
from optpolined.x86 import Register
from tests.bench.native import Code as Memory

__all__ = (
    "DIRECT",
    "DISPATCH",
    "FORMS",
    "INLINE",
    "INLINE_MEMORY",
    "ONE_TARGET",
    "RETPOLINE",
    "THUNK",
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
_LEARN_STUB: Final = "optp_learn_rax"
_BLOCK_ALIGN: Final = 32
_RECORD_BYTES: Final = 64


class Kit:
    """The thunk, the learning stub, and what makes blocks, in the memory of one program.

    ``module`` is optpoline.ko, from which the learning stub is taken.

    ``data`` is another memory: a CPU that sees code and what is written side by side takes it for
    code that changes itself, and starts over.
    """

    def __init__(self, memory: Memory, data: Memory, module: bytes) -> None:
        self.memory = memory
        self.data = data
        self._keystone = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)
        self._assembler = Assembler()
        self.thunk = memory.place(self.assemble(THUNK, GuestVirtual(0)), 64)
        self._learn_stub = self._place_learn_stub(module)

    def assemble(self, text: str, at: GuestVirtual) -> bytes:
        """Intel syntax, at its address."""
        code, _ = self._keystone.asm(text, at, as_bytes=True)
        return bytes(code)

    def block(self, form: Code) -> GuestVirtual:
        """A block in memory, with a record of its own."""
        record = self.data.reserve(_RECORD_BYTES, _RECORD_BYTES)
        size = self._assembler.block_size(form, Register.RAX)
        at = self.memory.reserve(size, _BLOCK_ALIGN)
        code = self._assembler.assemble(
            form, register=Register.RAX, at=at, record=record, learn_stub=self._learn_stub
        )
        self.memory.write(at, code)
        return at

    def _place_learn_stub(self, module: bytes) -> GuestVirtual:
        """The module's own stub; its one relocation is the jmp to the thunk."""
        with BytesIO(module) as file:
            elf = ELFFile(file)
            symbols = elf.get_section_by_name(".symtab")
            assert isinstance(symbols, SymbolTableSection)
            (symbol,) = (one for one in symbols.iter_symbols() if one.name == _LEARN_STUB)
            text = elf.get_section(symbol["st_shndx"])
            start, size = symbol["st_value"], symbol["st_size"]
            code = bytearray(text.data()[start : start + size])
            table = elf.get_section_by_name(f".rela{text.name}")
            assert isinstance(table, RelocationSection)
            relocations = [
                relocation["r_offset"] - start
                for relocation in table.iter_relocations()
                if start <= relocation["r_offset"] < start + size
            ]
        at = self.memory.reserve(size, 64)
        for offset in relocations:
            distance = self.thunk - (at + offset + 4)
            code[offset : offset + 4] = distance.to_bytes(4, "little", signed=True)
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
"""The code of a site, once its place is known."""

Maker = Callable[[Kit, Site], SiteCode]
"""Makes what a site needs beside its code."""


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
    """Compare, and the four branches that the plugin emits behind it."""

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
    """Addresses that are never called, beside those that are."""
    return tuple(GuestVirtual(site.other + place) for place in range(count))


def _keyed(bits: int | None = None) -> Callable[[Site], Code]:
    """A leaf for each of ``1 << bits`` keys, or of as many as there are targets."""

    def form(site: Site) -> Code:
        key = Key(Register.RCX, 0, bits or max(1, (len(site.targets) - 1).bit_length()))
        targets = site.targets
        leaves = ((index, targets[index % len(targets)]) for index in range(1 << key.bits))
        return Keyed(key, tuple(leaves))

    return form


DIRECT: Final = "direct call, static call inline"
RETPOLINE: Final = "retpoline"
INLINE: Final = "optpoline inline, immediate"
INLINE_MEMORY: Final = "optpoline inline, memory operand"
ONE_TARGET: Final = "optpoline out of line, 1 target"

FORMS: Final[dict[str, Maker]] = {
    DIRECT: _direct,
    "static call trampoline": _trampoline,
    "indirect, no mitigation": _indirect,
    RETPOLINE: _retpoline,
    "lfence; indirect": _lfence,
    INLINE: _inline,
    INLINE_MEMORY: _inline_memory,
    ONE_TARGET: _out_of_line(lambda site: Chain((site.first,))),
    "keyed tree, 16 leaves": _out_of_line(_keyed(4)),
    "learning stub": _out_of_line(lambda _site: LEARNING),
    "always miss: inline": _inline_miss,
    "always miss: out of line, 1 target": _out_of_line(lambda site: Chain(_others(site, 1))),
    "always miss: chain of 16": _out_of_line(lambda site: Chain(_others(site, 16))),
}
"""What can stand at a site that has one target."""

DISPATCH: Final[dict[str, Maker]] = {
    RETPOLINE: _retpoline,
    ONE_TARGET: FORMS[ONE_TARGET],
    "chain": _out_of_line(lambda site: Chain(tuple(site.targets))),
    "tree by target": _out_of_line(lambda site: Tree(tuple(site.targets))),
    "keyed tree": _out_of_line(_keyed()),
}
"""What can stand at a site that has several; all but the first two know them all."""
