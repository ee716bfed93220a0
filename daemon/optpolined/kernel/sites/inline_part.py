"""Inline sites: what the gcc plugin puts in front of a call or jump to a thunk.

    compare:  cmp   $-1, %reg             cmp   $-1, %reg
              jne   slow                  jne   slow
    branch:   call  thunk                 jmp   thunk
              jmp   done            slow: jmp   thunk
    slow:     call  thunk
    done:

The slow path is a thunk site like any other: the site is learned and counted there, and its block
stands there.  Compare and branch are the site's inline part.
"""

from dataclasses import dataclass
from typing import Final

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module.abi import INLINE_BRANCH, SiteKind
from optpolined.kernel.sites.declarations import Declaration, DeclarationKind
from optpolined.kernel.sites.thunks import Thunks

__all__ = ("InlinePart", "inline_part")

_NO_POINTER: Final = b"\xff\xff\xff\xff"

_CALL: Final = 0xE8
_JMP: Final = 0xE9
_JNE_REL8: Final = 0x75
_JMP_REL8: Final = 0xEB
_CS_PREFIX: Final = b"\x2e"
_BRANCH_SIZE: Final = 5
_INLINE_MAX: Final = INLINE_BRANCH + _BRANCH_SIZE + 2 + _BRANCH_SIZE + 1


@dataclass(frozen=True, slots=True)
class InlinePart:
    """The two instructions in front of an inline site's slow path, as they were built."""

    compare: GuestVirtual
    unlearned_compare: bytes
    unlearned_branch: bytes

    @property
    def branch(self) -> GuestVirtual:
        """Where the direct branch stands."""
        return GuestVirtual(self.compare + INLINE_BRANCH)

    @property
    def slow(self) -> GuestVirtual:
        """Where the slow path stands, which is an ordinary thunk site."""
        skip = 2 if self.unlearned_branch[0] == _CALL else 0
        return GuestVirtual(self.branch + len(self.unlearned_branch) + skip)


def inline_part(
    declaration: Declaration,
    text: bytes,
    base: GuestVirtual,
    thunks: Thunks,
) -> InlinePart | str:
    """Return the inline part of the declared site in the ``text`` at ``base``, or why not.

    ``text`` holds the code as it was built: what the poke table knows of is put back in it.
    """
    offset = declaration.site - base
    code = text[offset : offset + _INLINE_MAX] if 0 <= offset < len(text) else b""
    register = declaration.register
    assert register is not None
    is_call = declaration.kind is DeclarationKind.INLINE_CALL
    branch_at = GuestVirtual(declaration.site + INLINE_BRANCH)
    opcode = bytes([_CALL if is_call else _JMP])
    thunk = thunks.address(register, SiteKind.CALL if is_call else SiteKind.JMP)
    branch = opcode + _rel32(branch_at + _BRANCH_SIZE, thunk)
    compare = bytes([0x48 | register >> 3, 0x81, 0xF8 | register & 7]) + _NO_POINTER
    for prefix in (b"", _CS_PREFIX):
        length = len(prefix) + _BRANCH_SIZE
        skip = bytes([_JMP_REL8, length]) if is_call else b""
        slow_end = branch_at + _BRANCH_SIZE + len(skip) + length
        jne = bytes([_JNE_REL8, _BRANCH_SIZE + len(skip)])
        slow = prefix + opcode + _rel32(slow_end, thunk)
        if code.startswith(compare + jne + branch + skip + slow):
            return InlinePart(declaration.site, compare, branch)
    return "its code is not what the plugin emits"


def _rel32(end: int, target: int) -> bytes:
    return ((target - end) & 0xFFFF_FFFF).to_bytes(4, "little")
