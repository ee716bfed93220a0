"""Runs machine code in this process: memory in the lowest 2 GiB, and a call into it.

There a sign-extended imm32 names an address, as it does in the top 2 GiB where kernels are: so the
project's own code generator emits for this process what it emits for a guest.  The base of gs is 0
in a process that does not set it: a percpu offset is an address.
"""

import ctypes
import mmap
from typing import Final

from optpolined.addresses import GuestVirtual

__all__ = ("Code",)

_MAP_32BIT: Final = 0x40
_PROTECTION: Final = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
_FLAGS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_32BIT
_FAILED: Final = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Code:
    """``size`` bytes in the lowest 2 GiB, filled from the start on and then called."""

    def __init__(self, size: int) -> None:
        base = _libc.mmap(None, size, _PROTECTION, _FLAGS, -1, 0)
        if base is None or base == _FAILED:
            raise OSError(ctypes.get_errno(), "no memory in the lowest 2 GiB")
        self._base = base
        self._size = size
        self._end = base

    def close(self) -> None:
        """Unmap the memory."""
        _libc.munmap(self._base, self._size)

    @property
    def used(self) -> tuple[GuestVirtual, int]:
        """The start of what was reserved, and its size."""
        return GuestVirtual(self._base), self._end - self._base

    def reserve(self, size: int, align: int = 1) -> GuestVirtual:
        """Return the address of the next ``size`` bytes, which are zero."""
        address = -(-self._end // align) * align
        self._end = address + size
        if self._end > self._base + self._size:
            raise MemoryError(f"{size} bytes more do not fit")
        return GuestVirtual(address)

    def write(self, address: GuestVirtual, data: bytes) -> None:
        """Write what will be executed or read at ``address``."""
        ctypes.memmove(address, data, len(data))

    def read(self, address: GuestVirtual, size: int) -> bytes:
        """Read what the code has written."""
        return ctypes.string_at(address, size)

    def place(self, data: bytes, align: int = 1) -> GuestVirtual:
        """Reserve and write."""
        address = self.reserve(len(data), align)
        self.write(address, data)
        return address

    def call(self, address: GuestVirtual, *arguments: int) -> int:
        """Call a function of the C ABI that takes and returns u64s."""
        kinds = (ctypes.c_uint64,) * len(arguments)
        function = ctypes.CFUNCTYPE(ctypes.c_uint64, *kinds)(address)
        return int(function(*arguments))
