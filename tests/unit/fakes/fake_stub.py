"""A gdbstub that takes bytes as QEMU 7.2's does (gdbstub/gdbstub.c, gdb_read_byte).

It has a guest that runs or stands still, and memory without a machine.
"""

import string
import threading
from collections.abc import Collection
from pathlib import Path

from tests.unit.fakes.faults import NO_FAULTS, Faults, Outlet
from tests.unit.fakes.server import FakeServer

__all__ = ("FakeStub",)

_STOP_REPLY = b"T02thread:01;"
_LINE_BYTES = 4096


class FakeStub(FakeServer):
    """The stub.

    :param running: Whether the guest runs at first.
    :param unfinished: What a client that died has left in the parser.
    :param drop: Numbers of the packets, from 0, that are acknowledged but get no reply.
    :param cont_before: Numbers of the packets before which the guest is resumed from outside.
    :param pause_before: Numbers of the packets before which it is paused from outside; after
        ``cont_before``.
    :param silent_stops: Report no stops, as QEMU 8.1 and later between packets.
    """

    def __init__(
        self,
        path: Path,
        *,
        faults: Faults = NO_FAULTS,
        running: bool = True,
        unfinished: bytes = b"",
        drop: Collection[int] = (),
        cont_before: Collection[int] = (),
        pause_before: Collection[int] = (),
        silent_stops: bool = False,
        memory_bytes: int = 1 << 20,
    ) -> None:
        super().__init__(path, faults)
        self.memory = bytearray(memory_bytes)
        self.running = running
        self.physical = False
        self.packets: list[bytes] = []
        line, hashed, digits = unfinished.partition(b"#")
        self._line = bytearray(line) if unfinished else None
        self._sum = bytearray(digits) if hashed else None
        self._owed = False
        self._drop = drop
        self._cont_before = cont_before
        self._pause_before = pause_before
        self._silent_stops = silent_stops
        self._starts = 0
        self._lock = threading.RLock()

    def pause(self) -> None:
        """Pause the guest as QMP ``stop`` does."""
        self._halt(self._outlet)

    def cont(self) -> None:
        """Resume the guest as QMP ``cont`` does."""
        with self._lock:
            self.running = True

    def opened(self, outlet: Outlet) -> None:
        """Connecting stops the guest."""
        self._halt(outlet)

    def received(self, data: bytes, outlet: Outlet) -> None:
        """Take bytes."""
        with self._lock:
            for byte in data:
                self._take(byte, outlet)

    def _take(self, byte: int, outlet: Outlet) -> None:
        if byte == ord("$") and self._line is None:
            self._interfere(outlet)
        if self._owed:
            self._owed = byte not in b"+$"
            if byte != ord("$"):
                return
        if self.running:
            self._halt(outlet)
        elif self._line is None:
            if byte == ord("$"):
                self._line = bytearray()
        else:
            self._parse(self._line, byte, outlet)

    def _parse(self, line: bytearray, byte: int, outlet: Outlet) -> None:
        if self._sum is not None and byte not in string.hexdigits.encode():
            self._sum = None
        elif self._sum is not None:
            self._sum.append(byte)
            if len(self._sum) == 2:
                self._end_of_line(outlet)
        elif byte == ord("#"):
            self._sum = bytearray()
        elif len(line) == _LINE_BYTES - 1:
            self._line = None
        else:
            line.append(byte)

    def _interfere(self, outlet: Outlet) -> None:
        if self._starts in self._cont_before:
            self.running = True
        if self._starts in self._pause_before:
            self._halt(outlet)
        self._starts += 1

    def _end_of_line(self, outlet: Outlet) -> None:
        assert self._line is not None
        assert self._sum is not None
        line, digits = bytes(self._line), bytes(self._sum)
        self._line = self._sum = None
        if digits != b"%02x" % (sum(line) & 0xFF):
            outlet.send(b"-")
            return
        outlet.send(b"+")
        number = len(self.packets)
        self.packets.append(line)
        reply = self._handle(line)
        if reply is not None and number not in self._drop:
            self._reply(reply, outlet)

    def _handle(self, line: bytes) -> bytes | None:
        if line == b"c":
            self.running = True
            return None
        if line.startswith((b"m", b"M")):
            return self._access(line)
        if line.startswith(b"Qqemu.PhyMemMode:"):
            self.physical = line.endswith(b"1")
            return b"OK"
        answers = {
            b"?": b"T05thread:01;",
            b"qC": b"QC01",
            b"qSupported": b"PacketSize=1000;qXfer:features:read+",
            b"qqemu.PhyMemMode": b"%d" % self.physical,
        }
        return answers.get(line, b"")

    def _access(self, line: bytes) -> bytes:
        span, _, payload = line[1:].partition(b":")
        address, size = (int(number, 16) for number in span.split(b","))
        if address + size > len(self.memory) or size > 0x800:
            return b"E14"
        if line.startswith(b"m"):
            return self.memory[address : address + size].hex().encode()
        if len(payload) < 2 * size:
            return b"E22"
        self.memory[address : address + size] = bytes.fromhex(payload.decode())[:size]
        return b"OK"

    def _halt(self, outlet: Outlet | None) -> None:
        with self._lock:
            if self.running:
                self.running = False
                if outlet is not None and not self._silent_stops:
                    self._reply(_STOP_REPLY, outlet)

    def _reply(self, body: bytes, outlet: Outlet) -> None:
        self._owed = True
        outlet.send(b"$%b#%02x" % (body, sum(body) & 0xFF))
