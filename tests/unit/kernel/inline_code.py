"""Inline sites as the gcc plugin emits them, for tests to put anywhere."""

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import site_instruction
from optpolined.kernel.module.abi import SiteKind
from optpolined.x86 import Register

__all__ = ("emitted",)

_OPCODES = {SiteKind.CALL: b"\xe8", SiteKind.JMP: b"\xe9"}
_NO_POINTER = (1 << 32) - 1


def emitted(
    at: int,
    register: Register,
    thunk: GuestVirtual,
    kind: SiteKind,
    *,
    prefix: bool = False,
    head: GuestVirtual | None = None,
) -> bytes:
    """The code of an inline site whose compare stands at ``at``, and that has learned ``head``.

    ``prefix``: gcc has put a cs prefix before its own call, the slow path.
    """

    def branch(offset: int, target: GuestVirtual, cs: bytes = b"") -> bytes:
        blank = cs + _OPCODES[kind] + bytes(4)
        return site_instruction(blank, GuestVirtual(at + offset), target)

    compared = _NO_POINTER if head is None else head & _NO_POINTER
    compare = bytes([0x48 | register >> 3, 0x81, 0xF8 | register & 7]) + compared.to_bytes(
        4, "little"
    )
    inline = branch(9, thunk if head is None else head)
    cs = b"\x2e" * prefix
    if kind is SiteKind.CALL:
        inline += bytes([0xEB, len(cs) + 5])
    slow = branch(9 + len(inline), thunk, cs)
    return compare + bytes([0x75, len(inline)]) + inline + slow
