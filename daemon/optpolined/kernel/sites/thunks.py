"""The retpoline thunks: where a branch must lead to be a site, and which register it names.

    thunks = Thunks.one_array(header.thunk)
    thunks.register_at(target, SiteKind.CALL)   # Register.RAX, or None
    thunks.address(Register.RAX, SiteKind.CALL)

Kernels differ in their arrays of thunks (arch/x86/lib/retpoline.S).  Linux 6.1 has one, for calls
and jumps.  With ``retbleed=stuff``, later kernels have one for calls and one for jumps
(``__x86_indirect_call_thunk_*``, ``__x86_indirect_jump_thunk_*``).  Each is one more `ThunkArray`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module.abi import SiteKind
from optpolined.x86 import Register

__all__ = ("ThunkArray", "Thunks")

_BOTH: Final = frozenset({SiteKind.CALL, SiteKind.JMP})


@dataclass(frozen=True, slots=True)
class ThunkArray:
    """Thunks by register, and the branches that go to them: calls, jumps, or both."""

    by_register: Mapping[Register, GuestVirtual]
    kinds: frozenset[SiteKind] = _BOTH


class Thunks:
    """All thunks of one kernel."""

    def __init__(self, arrays: Iterable[ThunkArray]) -> None:
        """Take the arrays; of two that serve one kind of branch, new code uses the first."""
        self._registers: dict[tuple[GuestVirtual, SiteKind], Register] = {}
        self._addresses: dict[tuple[Register, SiteKind], GuestVirtual] = {}
        for array in arrays:
            for register, address in array.by_register.items():
                for kind in array.kinds:
                    self._registers.setdefault((address, kind), register)
                    self._addresses.setdefault((register, kind), address)

    @classmethod
    def one_array(cls, by_register: Mapping[Register, GuestVirtual]) -> Self:
        """Return the thunks of a kernel that has one array, for calls and jumps."""
        return cls([ThunkArray(by_register)])

    def register_at(self, address: GuestVirtual, kind: SiteKind) -> Register | None:
        """Return the register that a branch of ``kind`` to ``address`` names.

        Return ``None`` where no thunk for such branches stands.
        """
        return self._registers.get((address, kind))

    def address(self, register: Register, kind: SiteKind) -> GuestVirtual:
        """Return the thunk of ``register`` that code built for this kernel branches to.

        :raise KeyError: the register has no thunk, as rsp.
        """
        return self._addresses[register, kind]

    def addresses(self) -> npt.NDArray[np.uint64]:
        """Return every thunk of every array, each once, in ascending order."""
        return np.array(sorted({address for address, _ in self._registers}), np.uint64)
