"""A daemon that dies: one cycle over the plan's sites, and SIGKILL at a place in what it sends.

What is cut is the byte stream to the gdbstub, the only way in which a daemon changes a guest.
"""

import mmap
import os
import re
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from optpolined.config import GuestConfig
from optpolined.kernel.module.abi import RequestOp
from optpolined.kernel.module.counters import Counters
from optpolined.patching.arena import Arena
from optpolined.patching.counter_records import RecordAllocator
from optpolined.patching.patcher import Patcher
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.thunk_heads import ThunkHeads
from optpolined.qemu.sockets import connect_unix
from optpolined.session.link import Link, connect, transport_of
from optpolined.session.mailbox import open_mailbox
from tests.guest.hot_cycle import Plan

__all__ = ("Cut", "Trace", "cycle", "fork")

_HUNG_SECONDS = 240

_PACKET = re.compile(rb"[^#]*#..", re.DOTALL)
"""Up to the end of a packet; noise before it, such as acknowledgements, goes with it."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the child dies: after so many packets, or after so many bytes."""

    packets: int | None = None
    bytes: int | None = None


class Trace:
    """What the child has sent, and when it killed itself; in memory that outlives it."""

    _LAYOUT = struct.Struct("<dqq")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self._LAYOUT.size)

    def write(self, killed_at: float, packets: int, sent: int) -> None:
        """Called by the child."""
        self._LAYOUT.pack_into(self._memory, 0, killed_at, packets, sent)

    def read(self) -> tuple[float, int, int]:
        """Return when it killed itself (seconds since 1970, or 0), packets and bytes sent."""
        killed_at, packets, sent = self._LAYOUT.unpack_from(self._memory)
        return float(killed_at), int(packets), int(sent)


class DyingSocket(socket.socket):
    """Sends up to the cut, where the process ends."""

    def __init__(self, connection: socket.socket, cut: Cut, trace: Trace) -> None:
        super().__init__(fileno=connection.detach())
        self._cut = cut
        self._trace = trace
        self._packets = self._bytes = 0

    def send(self, data: Any, flags: int = 0) -> int:
        ends = [match.end() for match in _PACKET.finditer(data)]
        allowed = len(data)
        if self._cut.packets is not None and self._packets + len(ends) >= self._cut.packets:
            allowed = ends[self._cut.packets - self._packets - 1]
        if self._cut.bytes is not None:
            allowed = min(allowed, self._cut.bytes - self._bytes)
        sent = super().send(data[:allowed], flags)
        self._bytes += sent
        self._packets += sum(end <= sent for end in ends)
        self._trace.write(0.0, self._packets, self._bytes)
        if self._cut in (Cut(packets=self._packets), Cut(bytes=self._bytes)):
            self._trace.write(time.time(), self._packets, self._bytes)
            os.kill(os.getpid(), signal.SIGKILL)
        return sent


def cycle(config: GuestConfig, plan: Plan, cut: Cut, trace: Trace) -> None:
    """Do what a daemon does to its sites and the thunks, without the survey; die at ``cut``."""

    def connect_dying(path: Path, *, timeout_seconds: float) -> socket.socket:
        return DyingSocket(connect_unix(path, timeout_seconds=timeout_seconds), cut, trace)

    dying = mock.patch("optpolined.qemu.gdbstub.connect_unix", connect_dying)
    with dying, connect(config) as link:
        patcher = _patcher(link, config, plan)
        header, space = link.attachment.header, link.attachment.space
        heads = ThunkHeads(header, space, transport_of(link, config, time.monotonic))
        assert heads.arm()
        for wanted in plan.cycle():
            report = patcher.apply(wanted)
            assert report.done == len(wanted), report.sites
            assert patcher.observe() == wanted
        assert heads.disarm()


def _patcher(link: Link, config: GuestConfig, plan: Plan) -> Patcher:
    """Make a patcher of the guest, and hold the guest's module."""
    space, header = link.attachment.space, link.attachment.header
    counters = Counters.from_header(space.read, header)
    transport = transport_of(link, config, time.monotonic)
    mailbox = open_mailbox(link.attachment, transport)
    mailbox.request(RequestOp.HOLD)
    timeout = config.poke.grace_timeout_seconds

    def grace() -> None:
        mailbox.request(RequestOp.GRACE, timeout_seconds=timeout)

    return Patcher(
        transport=transport,
        grace=grace,
        space=space,
        header=header,
        sites=plan.sites,
        entries=PokeEntries(space, header),
        arena=Arena(header.arena, header.arena_size),
        records=RecordAllocator(range(counters.capacity)),
        record_offset=counters.offset,
        protocol=config.poke.protocol.for_sites(transport.kind),
        inline_protocol=config.poke.protocol.for_pairs(),
        batch_sites=config.poke.batch_sites,
    )


def fork(work: Callable[[], None]) -> int:
    """Do ``work`` in a child, and return its pid; its exit code is 0 where nothing was raised."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.alarm(_HUNG_SECONDS)
        work()
        os._exit(0)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(1)
