"""The packets of gdb's remote serial protocol, as QEMU's gdbstub speaks it.

A packet is ``$body#cs``, where cs is the sum of the body's bytes modulo 256 in two hex digits.  The
receiver acknowledges with ``+`` or ``-``.  Source: "Debugging with GDB", appendix E; QEMU 7.2
gdbstub/gdbstub.c.
"""

import binascii
import zlib

from optpolined.addresses import GuestPhysical
from optpolined.qemu.errors import StubProtocolError

__all__ = (
    "ACK",
    "MAX_REPLY",
    "PACKET_BYTES",
    "Replies",
    "data",
    "is_error",
    "is_stop",
    "packet",
    "read_packet",
    "write_packet",
)

ACK = ord("+")
_NAK = ord("-")
_START = ord("$")

PACKET_BYTES = 0x1000
"""What QEMU 7.2 takes in a packet (its PacketSize; later ones take more)."""

MAX_REPLY = PACKET_BYTES + 64
"""Bytes of the longest reply, to an ``m`` of 0x800 bytes."""

_EXACT = 256
"""adler32's low half is 1 + the sum of the bytes modulo 65521: the true sum up to 256 bytes."""


def _checksum(body: bytes) -> int:
    if len(body) <= _EXACT:
        return ((zlib.adler32(body) & 0xFFFF) - 1) & 0xFF
    pieces = range(0, len(body), _EXACT)
    return sum((zlib.adler32(body[at : at + _EXACT]) & 0xFFFF) - 1 for at in pieces) & 0xFF


def packet(body: bytes) -> bytes:
    """Frame ``body``, which must hold none of ``$ # } *``."""
    return b"$%b#%02x" % (body, _checksum(body))


def read_packet(address: GuestPhysical, size: int) -> bytes:
    """``m address,size``: the reply is ``size`` bytes in hex."""
    return packet(b"m%x,%x" % (address, size))


def write_packet(address: GuestPhysical, data: bytes) -> bytes:
    """``M address,size:hex``: the reply is ``OK``."""
    return packet(b"M%x,%x:%b" % (address, len(data), data.hex().encode()))


def is_stop(reply: bytes) -> bool:
    """``T02thread:01;``: QEMU sends it whenever the guest stops, asked or not."""
    return reply.startswith(b"T")


def is_error(reply: bytes) -> bool:
    """``E22`` and the like."""
    return len(reply) == 3 and reply.startswith(b"E")


def data(reply: bytes) -> bytes | None:
    """Take the bytes out of the reply to ``m``; None where it is not pure hex."""
    try:
        return binascii.unhexlify(reply)
    except binascii.Error:
        return None


class Replies:
    """Cuts the byte stream of the stub into acknowledgements and replies.

    Feed what was received with :meth:`feed`; it never holds more than one unfinished reply and
    what came with it.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0

    def __bool__(self) -> bool:
        """Something that was received has not been taken yet."""
        return self._position < len(self._buffer)

    def feed(self, received: bytes) -> None:
        """Add what was received."""
        if self._position:
            del self._buffer[: self._position]
            self._position = 0
        self._buffer += received

    def take_ack(self) -> bool:
        """Take one ``+`` where it is the next byte."""
        if self and self._buffer[self._position] == ACK:
            self._position += 1
            return True
        return False

    def take(self, *, skip_noise: bool = False) -> bytes | None:
        """Take the next reply's body, without the acknowledgements before it.

        :param skip_noise: Pass over NAKs and whatever else stands before a ``$``.
        :return: None where no whole reply has been received.
        :raise StubProtocolError: bytes outside a packet, a NAK, a wrong checksum, or no end.
        """
        buffer, start, end = self._buffer, self._position, len(self._buffer)
        while start < end and buffer[start] != _START:
            if buffer[start] != ACK and not skip_noise:
                what = "a NAK" if buffer[start] == _NAK else "bytes outside a packet"
                raise StubProtocolError(f"the gdbstub sent {what}")
            start += 1
        self._position = start
        mark = buffer.find(b"#", start, start + MAX_REPLY)
        if mark < 0:
            if end - start >= MAX_REPLY:
                raise StubProtocolError(f"the gdbstub sent a reply of more than {MAX_REPLY} bytes")
            return None
        if mark + 3 > end:
            return None
        body = bytes(buffer[start + 1 : mark])
        if buffer[mark + 1 : mark + 3].lower() != b"%02x" % _checksum(body):
            raise StubProtocolError("the gdbstub sent a reply with a wrong checksum")
        self._position = mark + 3
        return body
