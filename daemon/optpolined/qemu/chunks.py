"""Cuts reads and writes into packets, and packets into windows that may be on their way at once."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from optpolined.addresses import GuestPhysical
from optpolined.qemu.errors import OutOfRamError

__all__ = ("WINDOW_PACKETS", "read_chunks", "windows", "write_chunks")

_T = TypeVar("_T")

_PHYSICAL_END = 1 << 52
"""No x86-64 physical address is larger (Intel SDM volume 3, section 4.1.4)."""

_READ_BYTES = 0x800
_WRITE_BYTES = 0x7E0
"""``M`` with the longest address and this much data is 4,051 characters; the stub takes 4,095."""

WINDOW_PACKETS = 128
_WINDOW_BYTES = 0x10000
"""What may be on its way at once, requests and replies each."""


def _check(address: GuestPhysical, size: int) -> None:
    if address < 0 or size < 0 or address + size > _PHYSICAL_END:
        raise OutOfRamError(address, size)


def read_chunks(address: GuestPhysical, size: int) -> Iterator[tuple[GuestPhysical, int]]:
    """Cut a read of ``size`` bytes into what one packet can ask for.

    :raise OutOfRamError: no physical address is that large.
    """
    _check(address, size)
    for done in range(0, size, _READ_BYTES):
        yield GuestPhysical(address + done), min(_READ_BYTES, size - done)


def write_chunks(address: GuestPhysical, data: bytes) -> Iterator[tuple[GuestPhysical, bytes]]:
    """Cut ``data`` into what one packet can carry.

    :raise OutOfRamError: no physical address is that large.
    """
    _check(address, len(data))
    for done in range(0, len(data), _WRITE_BYTES):
        yield GuestPhysical(address + done), data[done : done + _WRITE_BYTES]


def windows(chunks: Sequence[_T], weigh: Callable[[_T], int]) -> Iterator[Sequence[_T]]:
    """Cut ``chunks`` where a window is full; ``weigh`` gives the bytes of one on its way."""
    start = filled = 0
    for number, chunk in enumerate(chunks):
        weight = weigh(chunk)
        if number - start == WINDOW_PACKETS or filled + weight > _WINDOW_BYTES:
            yield chunks[start:number]
            start, filled = number, 0
        filled += weight
    if start < len(chunks):
        yield chunks[start:]
