"""Peers that lie: a gdbstub, a QMP server and a human monitor that say anything, in any order."""

import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestPhysical
from optpolined.qemu import rsp
from optpolined.qemu.errors import StubProtocolError
from optpolined.qemu.gdbstub import GdbStub
from optpolined.qemu.memory import ram_ranges
from optpolined.qemu.monitor import Monitor
from optpolined.qemu.stub_setup import open_stub
from tests.hostile.daemon_work import named
from tests.hostile.examples import attack
from tests.unit.fakes.fake_monitor import GREETING

TIMEOUT_SECONDS = 2.0
AT = GuestPhysical(0x1000)
OK = b"+" + rsp.packet(b"OK")
STANDING = b"+" + rsp.packet(b"T05thread:01;")
STOPPED = rsp.packet(b"T02thread:01;")
MARKER = b"+" + rsp.packet(b"1")
WHICH = b"+" + rsp.packet(b"QC01")


# A gdbstub

WRITES, READ_BYTES = 3, 16
HONEST = (
    STOPPED,  # greeting
    *(b"+", b"+" + rsp.packet(b"PacketSize=1000;qXfer:features:read+"), STANDING, OK, MARKER),
    b"+",  # c
    *(STOPPED, MARKER, *[OK] * WRITES, b"+" + rsp.packet(b"61" * READ_BYTES), b"+"),
    *(STOPPED, MARKER, *[OK] * WRITES, b"+" + rsp.packet(b"62" * READ_BYTES), b"+"),
)
LIES = (
    *(STOPPED, MARKER, WHICH, OK, b"-", b"+", b"$", b"#", b"x", b"$#00", b"+$#00", b"\xff\xfe"),
    *(STOPPED * 400, MARKER * 600, OK * 200, b"+" * 5000, b"$" * 5000, b"$" + b"6" * 5000),
    *(rsp.packet(b"E14"), rsp.packet(b"E"), rsp.packet(b"OK" * 900), rsp.packet(b"6161")),
    *(rsp.packet(b"61" * READ_BYTES + b"6"), rsp.packet(b"zz" * READ_BYTES), rsp.packet(b"T")),
    *(rsp.packet(b"0*~"), b"%Stop:T05#00", b"$OK#zz", b"$OK#00", rsp.packet(b"PacketSize=")),
    *(rsp.packet(b"PacketSize=ffffffffffffffff"), rsp.packet(b"W00"), rsp.packet(b"\x00\xff")),
)


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """What an honest stub says, with a few pieces left out, said twice, or replaced by lies."""
    pieces = list(HONEST)
    for code in draw(st.binary(min_size=3, max_size=12)):
        place = code % (len(pieces) + 1)
        pick = draw(st.integers(0, 3 * len(LIES)))
        lie = (LIES[pick],) if pick < len(LIES) else ()
        pieces[place : place + pick % 2] = lie if pick % 3 else pieces[place : place + 1] * 2
    return b"".join(pieces)


@contextmanager
def patched_socket(target: str) -> Iterator[socket.socket]:
    """The other end of the socket that ``target`` connects to next."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs, pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, lambda *_, **__: ours)
        yield theirs


@given(said=conversations() | st.binary(max_size=200))
@attack("gdbstub")
def test_a_gdbstub_may_say_anything(said: bytes) -> None:
    with patched_socket("optpolined.qemu.gdbstub.connect_unix") as peer:
        peer.sendall(said)
        peer.shutdown(socket.SHUT_WR)
        with (
            named(),
            closing(GdbStub.connect(Path("stub"), timeout_seconds=TIMEOUT_SECONDS)) as stub,
        ):
            for _ in range(2):
                stub.stop()
                stub.write([(GuestPhysical(AT + 8 * number), b"x" * 8) for number in range(WRITES)])
                (data,) = stub.read([(AT, READ_BYTES)])
                assert len(data) == READ_BYTES
                stub.resume()
                stub.drain()


class Endless(socket.socket):
    """A connection to a stub that greets as it should, and then says one thing for ever."""

    def __init__(self, said: bytes) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self.received = 0
        self._greeting = b"".join(HONEST[:7])
        self._said = said

    def send(self, data: Any, _flags: int = 0, /) -> int:
        return len(memoryview(data))

    def recv(self, size: int, _flags: int = 0, /) -> bytes:
        greeting, self._greeting = self._greeting, b""
        data = greeting or self._said[:size]
        self.received += len(data)
        return data


@pytest.mark.parametrize("said", [STOPPED * 64, b"+" * 4096, OK, b"$" * 4096])
def test_a_gdbstub_that_never_ends_is_not_drained_for_ever(said: bytes) -> None:
    connection = Endless(said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optpolined.qemu.gdbstub.connect_unix", lambda *_, **__: connection)
        stub = GdbStub.connect(Path("stub"), timeout_seconds=TIMEOUT_SECONDS)
    with closing(stub), pytest.raises(StubProtocolError):
        stub.drain()
    assert connection.received < 4 << 20


# A QMP server

EVENT = b'{"event": "E", "timestamp": {"seconds": 1, "microseconds": 2}}'
NUMBERS = (b"1e999", b"-1", b"9" * 400, b"9" * 5000, b"NaN", b"-Infinity", b"0.5", b"null", b"true")
SHAPES = (
    b'{"return": %s, "id": "__qmp#%05d"}',
    b'{"return": {"status": %s}, "id": "__qmp#%05d"}',
    b'{"error": {"class": %s, "desc": "x"}, "id": "__qmp#%05d"}',
    b'{"error": {"class": "GenericError", "desc": %s}, "id": "__qmp#%05d"}',
    b'{"event": %s, "timestamp": %05d}',
    b'{"event": "E", "timestamp": {"seconds": %s, "microseconds": %05d}}',
    b'{"event": "E", "timestamp": {"microseconds": %s, "seconds": 1%05d}}',
    b'{"event": "E", "data": %s, "id": %05d}',
    b'{"QMP": %s, "id": %05d}',
)
RAW = (
    *(b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b"\x00", b"[" * 3000, b'{"a":' * 3000),
    *(b'"\\ud800"', b'{"return": {}, "id": []}', b'{"id": NaN}', b"x" * 70_000, EVENT * 2),
    b'{"return": "\\ud800\\u0000\\u001b[31m", "id": "__qmp#00001"}',
    b'{"error": {"class": "\\ud800", "desc": "\\u001b[31m\\n"}, "id": "__qmp#00000"}',
    b"\n".join([EVENT] * 60),
)
VALUES = (
    *NUMBERS,
    *(b'"running"', b'""', b'"\\ud800"', b"{}", b"[]", b"[" * 200 + b"]" * 200),
    *(b'{"status": "paused"}', b'{"a": {"b": [1, {}]}}', b'"' + b"y" * 3000 + b'"'),
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """One to four lines; mostly an answer to some request, of a shape that QMP does not know."""
    lines = []
    for code in draw(st.binary(min_size=1, max_size=4)):
        pick = draw(st.integers(0, 255))
        if code % 4 == 0:
            lines.append(RAW[pick % len(RAW)])
        else:
            shape = SHAPES[pick % len(SHAPES)]
            lines.append(shape % (VALUES[code % len(VALUES)], code // 4 % 4))
    return b"\n".join(lines) + b"\n"


SCRIPT = (
    json.dumps(GREETING).encode() + b"\n",
    b'{"return": {}}\n',
    EVENT + b'\n{"return": {"status": "running"}, "id": "__qmp#00000"}\n',
    b'{"return": "text", "id": "__qmp#00001"}\n' + EVENT + b"\n",
    b'{"return": {"status": "paused"}, "id": "__qmp#00002"}\n',
)


def _serve(peer: socket.socket, script: Sequence[bytes]) -> None:
    """Greet, and answer the first request before it comes; hang up after the last piece."""
    try:
        peer.sendall(b"".join(script[:2]))
        asked = 0
        for number, piece in enumerate(script[2:], 2):
            while asked < number:
                request = peer.recv(4096)
                if not request:
                    return
                asked += request.count(b'"execute"')
            peer.sendall(piece)
        peer.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the client has hung up


@given(lie_at=st.integers(0, len(SCRIPT)), lie=messages())
@attack("qmp")
def test_a_qmp_server_may_say_anything(lie_at: int, lie: bytes) -> None:
    with patched_socket("optpolined.qemu.monitor.connect_unix") as peer:
        script = (*SCRIPT[:lie_at], lie)
        thread = threading.Thread(target=_serve, args=(peer, script))
        thread.start()
        with named(), Monitor.connect(Path("qmp"), timeout_seconds=TIMEOUT_SECONDS) as monitor:
            for call in (monitor.status, lambda: monitor.hmp("info x"), monitor.status):
                with named():
                    call()
            events = monitor.drain_events()
            assert len(events) <= 1024
        peer.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert not [thread for thread in threading.enumerate() if thread.name == "qmp"]


# A human monitor

MTREE = (
    *(' AS "memory", root: system', ' AS "I/O", root: io', "FlatView #1", " Root memory region"),
    *("\n", " ", "\r", "\x00", "\ud800", "  ", " (prio 0, ram): pc.ram", " (prio 0, i/o): x"),
    *("0000000000000000-000000003fffffff", "ffffffffffffffff", "0000000000000000", "-"),
    "  0000000000000000-000000000009ffff (prio 0, ram): pc.ram\n",
    "  00000000000a0000-00000000000bffff (prio 1, i/o): vga\n",
    "  0000000000100000-000000003fffffff (prio 0, ram): pc.ram @0000000000100000 KVM\n",
    "  0000000100000000-ffffffffffffffff (prio 0, ram): pc.ram\n",
    "  0000000000050000-0000000000040000 (prio 0, ram): pc.ram\n",
)
HVA = (
    "Host virtual address for 0x0 (pc.ram) is 0x7f0000000000",
    "Host virtual address for 0x100000 (pc.ram) is 0x7f0000100000\r\n",
    *("Memory at address 0x0 is not RAM", "", "0x7f00", "Host virtual address for 0x0 (x) is 0x"),
    "Host virtual address for 0x0 (pc.ram) is 0xffffffffffffffff",
)


class LyingMonitor:
    """A monitor that says what it is given."""

    path = Path("qmp")

    def __init__(self, texts: Sequence[str], answer: object = None) -> None:
        self.lines: list[str] = []
        self._texts = texts
        self._answer = answer

    def hmp(self, line: str) -> str:
        self.lines.append(line)
        assert len(self.lines) <= 2 * 4096 + 1
        return self._texts[(len(self.lines) - 1) % len(self._texts)]

    def execute(self, _command: str, _arguments: Mapping[str, object] | None = None) -> object:
        return self._answer


mtrees = st.lists(st.sampled_from(MTREE), max_size=40).map(
    lambda parts: 'FlatView #0\n AS "memory", root: system\n Root x\n' + "".join(parts)
)


@given(tree=mtrees, addresses=st.lists(st.sampled_from(HVA), min_size=1, max_size=6))
@attack("hmp", share=0.7)
def test_any_account_of_the_ram_is_refused_or_in_order(tree: str, addresses: list[str]) -> None:
    with named():
        found = ram_ranges(LyingMonitor([tree, *addresses]))
        ends = [0, *(item.end for item in found)]
        for item, before in zip(found, ends, strict=False):
            assert before <= item.start < item.end <= 1 << 52
            assert 0 <= item.host < 1 << 56


FILES: tuple[object, ...] = (
    "unix:/x,server",
    "disconnected:unix:/x,server",
    "tcp:1",
    "\n\x1b",
    "\ud800",
    None,
    [[]],
)
devices = st.fixed_dictionaries(
    {},
    optional={
        "label": st.sampled_from(("gdb", "gdb", "gdb", "monitor", None, 7)),
        "filename": st.sampled_from(FILES) | st.text(max_size=12),
    },
)


@given(answer=st.lists(devices | st.sampled_from((None, "gdb", [])), max_size=4) | devices)
@attack("hmp", share=0.3)
def test_any_list_of_devices_names_a_stub_or_an_error(answer: object) -> None:
    with named():
        open_stub(LyingMonitor(["said\n\x1b"], answer), Path("/proc/nowhere/gdb"))
