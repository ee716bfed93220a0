"""The packets of gdb's remote serial protocol, as QEMU's gdbstub speaks it.

A packet is ``$body#cs``, where cs is the sum of the body's bytes modulo 256 in two hex digits.  The
receiver acknowledges with ``+`` or ``-``.  Source: "Debugging with GDB", appendix E; QEMU 7.2
gdbstub/gdbstub.c.
"""

import binascii
import re
import zlib
from collections.abc import Sequence

from optpolined.addresses import GuestPhysical
from optpolined.qemu.errors import StubProtocolError
from optpolined.qemu.quirks import PACKET_BYTES, PARSER_RESET, REPLY_BYTES_MAX, VCPUS_MAX

__all__ = (
    "ACK",
    "CONTINUE",
    "MARKER_REPLY",
    "STOP",
    "VIRTUAL",
    "Replies",
    "check_greeting",
    "data",
    "greeting",
    "is_error",
    "is_pause",
    "is_stop",
    "packet",
    "read_packet",
    "write_packet",
)

ACK = ord("+")
_NAK = ord("-")
_START = ord("$")

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
    """Make ``m address,size``, whose reply is ``size`` bytes in hex."""
    return packet(b"m%x,%x" % (address, size))


def write_packet(address: GuestPhysical, data: bytes) -> bytes:
    """Make ``M address,size:hex``, whose reply is ``OK``."""
    return packet(b"M%x,%x:%b" % (address, len(data), data.hex().encode()))


def is_stop(reply: bytes) -> bool:
    """Return whether this is ``T02thread:01;``, which QEMU sends whenever the guest stops."""
    return reply.startswith(b"T")


def is_pause(reply: bytes) -> bool:
    """Return whether something paused the guest.

    A breakpoint, and ``?``, are answered with ``T05``.
    """
    return reply.startswith(b"T02")


def is_error(reply: bytes) -> bool:
    """Return whether this is an error: ``E22`` and the like."""
    return len(reply) == 3 and reply.startswith(b"E")


def data(reply: bytes) -> bytes | None:
    """Take the bytes out of the reply to ``m``; ``None`` where it is not pure hex."""
    try:
        return binascii.unhexlify(reply)
    except binascii.Error:
        return None


_MARKER = packet(b"qqemu.PhyMemMode")
MARKER_REPLY = b"1"
"""No other reply looks like it: data is an even number of digits."""

STOP = packet(b"qC") + _MARKER
CONTINUE = packet(b"c")
VIRTUAL = packet(b"Qqemu.PhyMemMode:0")


def greeting(vcpus: int) -> bytes:
    """Make what a client begins with; the reply to its last packet is MARKER_REPLY.

    ``?`` is what gdb begins with, because it removes the breakpoints of the vCPU that ``Hc`` has
    chosen (handle_target_halt()).
    """
    threads = range(1, min(vcpus, VCPUS_MAX) + 1)
    remove = b"".join(packet(b"Hc%x" % thread) + packet(b"?") for thread in threads)
    begin, physical = packet(b"qSupported"), packet(b"Qqemu.PhyMemMode:1")
    return PARSER_RESET + begin + remove + physical + _MARKER


_PACKET_SIZE = re.compile(rb"PacketSize=([0-9a-f]{1,8})(;|$)")


def check_greeting(replies: Sequence[bytes]) -> None:
    """Check that the replies to :func:`greeting` are those of a gdbstub that we can work with.

    :raise StubProtocolError: they are not.
    """
    sizes = [_PACKET_SIZE.search(reply) for reply in replies]
    if not any(size and int(size[1], 16) >= PACKET_BYTES for size in sizes):
        raise StubProtocolError("what answers is not QEMU's gdbstub")
    if b"OK" not in replies:
        raise StubProtocolError("the gdbstub has no physical memory mode; use a newer QEMU")


class Replies:
    """Cuts the byte stream of the stub into acknowledgements and replies.

    :meth:`feed` adds what was received.  No more is kept than one unfinished reply and what came
    with it.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0

    def __bool__(self) -> bool:
        """Return whether something that was received has not been taken yet."""
        return self._position < len(self._buffer)

    def feed(self, received: bytes) -> None:
        """Add what was received."""
        if self._position:
            del self._buffer[: self._position]
            self._position = 0
        self._buffer += received

    def take_ack(self) -> bool:
        """Take one ``+`` if it is the next byte; return whether it was."""
        if self and self._buffer[self._position] == ACK:
            self._position += 1
            return True
        return False

    def take(self, *, skip_noise: bool = False) -> bytes | None:
        """Take the next reply's body, without the acknowledgements before it.

        :param skip_noise: Pass over NAKs and anything else before a ``$``.
        :return: ``None`` where no whole reply has been received.
        :raise StubProtocolError: bytes outside a packet, a NAK, a wrong checksum, or no end.
        """
        buffer, start, end = self._buffer, self._position, len(self._buffer)
        while start < end and buffer[start] != _START:
            if buffer[start] != ACK and not skip_noise:
                what = "a NAK" if buffer[start] == _NAK else "bytes outside a packet"
                raise StubProtocolError(f"the gdbstub sent {what}")
            start += 1
        self._position = start
        mark = buffer.find(b"#", start, start + REPLY_BYTES_MAX)
        if mark < 0:
            if end - start >= REPLY_BYTES_MAX:
                raise StubProtocolError(
                    f"the gdbstub sent a reply of more than {REPLY_BYTES_MAX} bytes"
                )
            return None
        if mark + 3 > end:
            return None
        body = bytes(buffer[start + 1 : mark])
        if buffer[mark + 1 : mark + 3].lower() != b"%02x" % _checksum(body):
            raise StubProtocolError("the gdbstub sent a reply with a wrong checksum")
        self._position = mark + 3
        return body
