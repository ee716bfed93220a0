"""What this package knows of QEMU's versions: the one place for it.

Nothing here asks for a version.  Where QEMU says what it can do, the code goes by that; elsewhere
it keeps to what every version takes.  All of it was seen on QEMU 7.2.22 in November 2026; packets
and the monitor's texts on 10.0 and 11.1 too.

====================================  ==========================================================
What QEMU does                        What the code does about it
====================================  ==========================================================
gdbstub: no ``X`` packet              ``m`` and ``M``, in hex (:mod:`~optpolined.qemu.rsp`)
gdbstub: no ``QStartNoAckMode``       never acknowledges anything, and so never counts acks
gdbstub: a packet that is too long    :data:`PACKET_BYTES`, checked against the ``PacketSize`` of
is dropped without a NAK              ``qSupported``; :data:`READ_BYTES`, :data:`WRITE_BYTES`
gdbstub: 300 packets in flight hung   :data:`WINDOW_PACKETS`, :data:`WINDOW_BYTES`
the main loop, 200 did not
gdbstub: a client that died leaves    :data:`PARSER_RESET` before the greeting
its unfinished line in the parser
gdbstub: ``?`` removes breakpoints    one ``Hc`` and ``?`` for each vCPU, :data:`VCPUS_MAX` at most
of one vCPU only (TCG, from 7.2 on)
gdbstub: from 8.1 on a stop is not    :class:`~optpolined.qemu.held.HeldStub` compares QMP's status
reported between packets (commit      from before and after connecting; ``GdbStub`` counts replies
758370052fb, "only send stop-reply    and needs no report
packets when allowed to")
gdbstub: physical memory mode         :meth:`~optpolined.qemu.gdbstub.GdbStub.hand_over` ends it
outlives the connection
gdbstub: ``D`` needs ``D;1`` after    asks for no ``multiprocess+``, and hangs up without ``D``
``multiprocess+``
HMP: texts made for people            :mod:`~optpolined.qemu.hmp` parses them tolerantly
====================================  ==========================================================

The sources are gdbstub/gdbstub.c and, from 8.0 on, gdbstub/internals.h and gdbstub/system.c.
"""

__all__ = (
    "PACKET_BYTES",
    "PARSER_RESET",
    "READ_BYTES",
    "REPLY_BYTES_MAX",
    "VCPUS_MAX",
    "WINDOW_BYTES",
    "WINDOW_PACKETS",
    "WRITE_BYTES",
)

PACKET_BYTES = 0x1000
"""The smallest ``PacketSize`` that was seen.

It is MAX_PACKET_LENGTH (7.2: 4096 in gdbstub/gdbstub.c; 11.1 says 0x20020, which is 131104).  More
would be of no use: what is read and written at once is smaller.
"""

READ_BYTES = 0x800
"""Bytes that one ``m`` may ask for: 7.2 answers more with an error (its reply is in hex, and
handle_read_mem() compares it with MAX_PACKET_LENGTH).  11.1 takes 0x8000."""

WRITE_BYTES = 0x7E0
"""Bytes that one ``M`` may carry.  With the longest address that is 4,051 characters; 7.2 takes
4,095 (PACKET_BYTES less its end).  11.1 takes 40,000 bytes."""

REPLY_BYTES_MAX = PACKET_BYTES + 64
"""Bytes of the longest reply, which is that to an ``m`` of READ_BYTES."""

WINDOW_PACKETS = 128
"""Packets that may be on their way at once.  7.2 stood 200; 300 with an ack for each hung it."""

WINDOW_BYTES = 0x10000
"""Bytes that may be on their way at once, requests and replies each.

QEMU writes replies with blocking writes from its main loop; Linux gives a unix socket 208 KiB
(net.core.wmem_default).
"""

PARSER_RESET = b"+" + b"x" * (PACKET_BYTES + 0x100) + b"#00"
"""Frees the parser of what a client that died has left in it.

It takes the place of the acknowledgement that was owed, then runs an unfinished line over a buffer
of PACKET_BYTES: so no checksum can make a command of that line.  A stub with a larger buffer sees a
checksum that is most likely wrong.  The classic ``#00`` alone completes a line whose sum is 0.
"""

VCPUS_MAX = 48
"""The vCPUs whose breakpoints the greeting removes: two packets each, in one window.

handle_target_halt() removes those of the vCPU that ``Hc`` has chosen (gdb_breakpoint_remove_all(),
from 7.2 on, under TCG).
"""
