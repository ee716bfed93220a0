"""Cuts reads and writes into packets, and packets into windows that may be on their way at once."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from optpolined.addresses import GuestPhysical
from optpolined.qemu.errors import OutOfRamError
from optpolined.qemu.quirks import READ_BYTES, WINDOW_BYTES, WINDOW_PACKETS, WRITE_BYTES

__all__ = ("read_chunks", "windows", "write_chunks")

_T = TypeVar("_T")

_PHYSICAL_END = 1 << 52
"""No x86-64 physical address is larger (Intel SDM volume 3, section 4.1.4)."""


def read_chunks(
    requests: Sequence[tuple[GuestPhysical, int]],
) -> list[tuple[GuestPhysical, int]]:
    """Cut reads into what one packet can ask for: address and size in bytes of each.

    :raise OutOfRamError: no physical address is that large.
    """
    chunks = []
    for address, size in requests:
        if address < 0 or size < 0 or address + size > _PHYSICAL_END:
            raise OutOfRamError(address, size)
        if 0 < size <= READ_BYTES:
            chunks.append((address, size))
        else:
            for done in range(0, size, READ_BYTES):
                chunk = GuestPhysical(address + done), min(READ_BYTES, size - done)
                chunks.append(chunk)
    return chunks


def write_chunks(
    writes: Sequence[tuple[GuestPhysical, bytes]],
) -> list[tuple[GuestPhysical, bytes]]:
    """Cut writes into what one packet can carry: address and bytes of each.

    :raise OutOfRamError: no physical address is that large.
    """
    chunks = []
    for address, data in writes:
        size = len(data)
        if address < 0 or address + size > _PHYSICAL_END:
            raise OutOfRamError(address, size)
        if 0 < size <= WRITE_BYTES:
            chunks.append((address, data))
        else:
            for done in range(0, size, WRITE_BYTES):
                chunk = GuestPhysical(address + done), data[done : done + WRITE_BYTES]
                chunks.append(chunk)
    return chunks


def windows(chunks: Sequence[_T], weigh: Callable[[_T], int]) -> Iterator[Sequence[_T]]:
    """Cut ``chunks`` where a window is full; ``weigh`` gives the bytes of one on its way."""
    start = filled = 0
    for number, chunk in enumerate(chunks):
        weight = weigh(chunk)
        if number - start == WINDOW_PACKETS or filled + weight > WINDOW_BYTES:
            yield chunks[start:number]
            start, filled = number, 0
        filled += weight
    if start < len(chunks):
        yield chunks[start:]
