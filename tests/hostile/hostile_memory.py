"""The RAM of a guest that lies: other bytes than it should hold, and others again as it is read."""

from collections.abc import Iterable
from dataclasses import dataclass

from optpolined.addresses import GuestPhysical
from optpolined.qemu.errors import OutOfRamError
from tests.hostile.whole_guest import GUEST, RAM_SIZE

__all__ = ("Change", "HostileMemory")

_PAGE = 4096
_RAM = GUEST.memory.read(GuestPhysical(0), RAM_SIZE)


@dataclass(frozen=True)
class Change:
    """Bytes that the guest writes to its own memory when ``after`` reads have been made."""

    after: int
    physical: int
    data: bytes


class HostileMemory:
    """The whole guest's RAM with changes.

    More than ``reads_max`` reads, or ``bytes_max`` bytes in all, fail the test: the reader
    has lost its bounds.
    """

    def __init__(
        self,
        changes: Iterable[Change],
        *,
        reads_max: int = 20_000,
        bytes_max: int = 32 << 20,
    ) -> None:
        self.reads = 0
        self.bytes = 0
        self.changed: list[int] = []
        """The physical address of each byte that was written from outside."""
        self._reads_max = reads_max
        self._bytes_max = bytes_max
        self._pages: dict[int, bytearray] = {}
        self._due = sorted(changes, key=lambda change: change.after, reverse=True)

    def read(self, address: GuestPhysical, size: int) -> bytes:
        self.reads += 1
        self.bytes += size
        assert self.reads <= self._reads_max
        while self._due and self._due[-1].after < self.reads:
            change = self._due.pop()
            self._write(change.physical, change.data)
        if address < 0 or size < 0 or address + size > RAM_SIZE:
            raise OutOfRamError(address, size)
        assert self.bytes <= self._bytes_max
        first, last = address // _PAGE, (address + size - 1) // _PAGE
        changed = [page for page in self._pages if first <= page <= last]
        if not changed:
            return _RAM[address : address + size]
        data = bytearray(_RAM[address : address + size])
        for page in changed:
            start = page * _PAGE
            low, high = max(address, start), min(address + size, start + _PAGE)
            data[low - address : high - address] = self._pages[page][low - start : high - start]
        return bytes(data)

    def write(self, address: int, data: bytes) -> None:
        """Write from outside, as the gdbstub does: only to RAM."""
        assert 0 <= address <= RAM_SIZE - len(data)
        before = self.read(GuestPhysical(address), len(data))
        pairs = enumerate(zip(before, data, strict=True), address)
        self.changed += [place for place, (old, new) in pairs if old != new]
        self._write(address, data)

    def _write(self, address: int, data: bytes) -> None:
        for place, octet in enumerate(data, address):
            page, offset = divmod(place, _PAGE)
            if page not in self._pages:
                self._pages[page] = bytearray(_RAM[page * _PAGE : (page + 1) * _PAGE])
            self._pages[page][offset] = octet
