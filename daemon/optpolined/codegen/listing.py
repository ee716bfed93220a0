"""Disassembles machine code for people, with names for the addresses in it."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import capstone

from optpolined.addresses import GuestVirtual

__all__ = ("Line", "disassemble")

_IMMEDIATE = re.compile(r"(?<![\w\[])(-?)0x([0-9a-f]{6,16})(?![\w\]])")
"""An operand that can be an address; a displacement in brackets is not one with a name."""

_TOP = 1 << 64


class Line(NamedTuple):
    """One instruction."""

    address: GuestVirtual
    code: bytes
    text: str


def disassemble(
    code: bytes, at: GuestVirtual, name: Callable[[GuestVirtual], str | None]
) -> Iterator[Line]:
    """Yield the instructions of ``code``, which stands at ``at``.

    A last line has the bytes that do not decode.

    :param name: Returns the name of an address, if it has one.
    """
    machine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    end = 0
    for address, size, mnemonic, operands in machine.disasm_lite(code, at):
        end = address - at + size
        text = f"{mnemonic} {_named(operands, name)}".rstrip()
        yield Line(GuestVirtual(address), code[end - size : end], text)
    if end < len(code):
        yield Line(GuestVirtual(at + end), code[end:], "(no instruction)")


def _named(operands: str, name: Callable[[GuestVirtual], str | None]) -> str:
    def named(found: re.Match[str]) -> str:
        value = int(found[2], 16)
        # A sign-extended immediate: the compare's half of a kernel address.
        address = GuestVirtual((_TOP - value) % _TOP if found[1] else value)
        known = name(address)
        return found[0] if known is None else f"{address:#x} <{known}>"

    return _IMMEDIATE.sub(named, operands)
