"""A gdbstub client for the tests, and what is done with it."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from optpolined.addresses import GuestPhysical
from optpolined.qemu.gdbstub import GdbStub
from tests.unit.fakes.fake_stub import FakeStub

TIMEOUT_SECONDS = 0.4
SLACK_SECONDS = 2.0

GREETING_PACKETS = 6
"""$ that the client sends to connect to a guest that runs: five, and ``c``."""

AT = GuestPhysical(0x1000)


class Flag:
    """A guard that remembers."""

    def __init__(self) -> None:
        self.stopped = False
        self.calls: list[bool] = []

    def stopping(self) -> None:
        self.stopped = True
        self.calls.append(True)

    def resumed(self) -> None:
        self.stopped = False
        self.calls.append(False)


@contextlib.contextmanager
def connected(fake: FakeStub, *, guard: Flag | None = None) -> Iterator[GdbStub]:
    with fake, GdbStub.connect(fake.path, timeout_seconds=5, guard=guard) as stub:
        yield stub


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < TIMEOUT_SECONDS + SLACK_SECONDS


def running_soon(fake: FakeStub) -> bool:
    """The fake acknowledges ``c`` before it acts on it, as QEMU does."""
    deadline = time.monotonic() + SLACK_SECONDS
    while not fake.running and time.monotonic() < deadline:
        time.sleep(0.001)
    return fake.running


@contextlib.contextmanager
def interrupted(stub: GdbStub, number: int) -> Iterator[None]:
    """Ctrl-C at the ``number``-th reception, which are of 16 bytes at most."""
    receive, left = stub._conversation._wire._receive, [number]

    def interrupt(size: int, flags: int = 0) -> bytes:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return receive(min(size, 16), flags)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(stub._conversation._wire, "_receive", interrupt)
        yield


def assert_usable(stub: GdbStub) -> None:
    assert stub.stop()
    assert stub.read([(AT, 4)]) == [bytes(4)]
    stub.resume()


def use(path: Path) -> None:
    """Everything that the client can do."""
    with GdbStub.connect(path, timeout_seconds=TIMEOUT_SECONDS) as stub:
        for _ in range(2):
            stub.stop()
            stub.write([(GuestPhysical(AT + 8 * number), b"x" * 8) for number in range(20)])
            stub.read([(GuestPhysical(AT + 8 * number), 8) for number in range(20)])
            stub.resume()
