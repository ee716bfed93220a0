"""The errors between a form and its bytes.

CodegenError
+-- AssembleError    a form, register or address that no code can be made for: the caller's fault
|   +-- BadKeyError  a key that no code can be made for: what declared it is at fault
|   +-- ReachError   the destination of a branch is further than a rel32 goes
+-- DecodeError      bytes that are not what assemble emits: the guest's memory, or its owner
+-- VerifyError      what was assembled does not read back as what was asked: our fault
"""

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Key
from optpolined.errors import OptpolinedError

__all__ = (
    "AssembleError",
    "BadKeyError",
    "CodegenError",
    "DecodeError",
    "ReachError",
    "VerifyError",
)


class CodegenError(OptpolinedError):
    """A form that cannot be assembled, or code that cannot be decoded."""


class AssembleError(CodegenError):
    """No code can be made for this form, register or address."""


class BadKeyError(AssembleError):
    """No code can be made for ``key``."""

    def __init__(self, key: Key, reason: str) -> None:
        super().__init__(
            f"the key of {key.bits} bits from bit {key.shift} of {key.register.name.lower()} "
            f"cannot be used: {reason}"
        )
        self.key = key
        self.reason = reason


class ReachError(AssembleError):
    """A branch that ends at ``end`` cannot reach ``address``: a rel32 spans 2 GiB either way."""

    def __init__(self, address: GuestVirtual, end: GuestVirtual) -> None:
        super().__init__(f"{address:#x} is out of reach of the branch that ends at {end:#x}")
        self.address = address
        self.end = end


class DecodeError(CodegenError):
    """The bytes at ``address`` are not code that optpolined writes."""

    def __init__(self, address: GuestVirtual, reason: str) -> None:
        super().__init__(f"the code at {address:#x} is not ours: {reason}")
        self.address = address
        self.reason = reason


class VerifyError(CodegenError):
    """The code for ``address`` reads back as something else than was asked for."""

    def __init__(self, address: GuestVirtual, reason: str) -> None:
        super().__init__(f"the code assembled for {address:#x} is wrong: {reason}")
        self.address = address
        self.reason = reason
