"""The few facts of x86-64 that every room needs: register numbers and the int3 byte.

Source: Intel SDM volume 2, section 2.1.5 (register encoding) and INT3 in the instruction reference.
"""

from enum import IntEnum

__all__ = ("INT3", "THUNK_REGISTERS", "Register")

INT3 = 0xCC


class Register(IntEnum):
    """A 64-bit general-purpose register, by its encoding."""

    RAX = 0
    RCX = 1
    RDX = 2
    RBX = 3
    RSP = 4
    RBP = 5
    RSI = 6
    RDI = 7
    R8 = 8
    R9 = 9
    R10 = 10
    R11 = 11
    R12 = 12
    R13 = 13
    R14 = 14
    R15 = 15


THUNK_REGISTERS = tuple(register for register in Register if register is not Register.RSP)
"""The registers that a kernel has a retpoline thunk for (arch/x86/lib/retpoline.S)."""
