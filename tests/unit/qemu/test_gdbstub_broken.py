"""The gdbstub client against stubs that misbehave."""

import contextlib
import socket
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestPhysical
from optpolined.qemu.errors import (
    QemuError,
    ResumedError,
    StubAbsentError,
    StubClosedError,
    StubProtocolError,
    StubTimeoutError,
)
from optpolined.qemu.gdbstub import GdbStub
from tests.unit.fakes.fake_stub import FakeStub
from tests.unit.fakes.faults import Faults
from tests.unit.qemu.stub_client import (
    AT,
    SLACK_SECONDS,
    TIMEOUT_SECONDS,
    in_time,
    running_soon,
    use,
)

CONVERSATION_BYTES = 1500
"""More than a test's conversation has."""


@given(
    st.one_of(
        st.builds(Faults, hang_up_after=st.integers(0, CONVERSATION_BYTES)),
        st.builds(
            Faults,
            garble=st.dictionaries(
                st.integers(0, CONVERSATION_BYTES), st.integers(1, 255), min_size=1, max_size=3
            ),
            sizes=st.lists(st.integers(1, 200), max_size=3),
        ),
    )
)
@settings(deadline=None, max_examples=60)
def test_a_broken_stream_ends_in_a_named_error_in_time(faults: Faults) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "gdb"
        began = time.monotonic()
        with FakeStub(path, faults=faults), contextlib.suppress(QemuError):
            use(path)
        assert time.monotonic() - began < 4 * TIMEOUT_SECONDS + SLACK_SECONDS


@pytest.mark.parametrize("after", [0, 1, 17, 60, 77, 120, 400])
def test_a_stub_that_falls_silent_is_given_up(path: Path, after: int) -> None:
    with (
        FakeStub(path, faults=Faults(silent_after=after)),
        in_time(),
        pytest.raises((StubTimeoutError, StubClosedError)),
    ):
        use(path)


def test_a_stub_that_trickles_is_given_up(path: Path) -> None:
    faults = Faults(sizes=(1,), delay_seconds=0.05)
    with FakeStub(path, faults=faults), in_time(), pytest.raises(StubTimeoutError):
        use(path)


@pytest.mark.parametrize(
    "flood", [b"+" * 4096, b"$" * 4096, b"x" * 4096, b"$OK#9a" * 500, b"$T02thread:01;#04" * 200]
)
def test_a_stub_that_never_ends_is_given_up(path: Path, flood: bytes) -> None:
    with (
        FakeStub(path, faults=Faults(flood=flood)),
        in_time(),
        pytest.raises((StubTimeoutError, StubProtocolError)),
    ):
        use(path)


def test_a_dropped_reply_is_given_up_and_the_guest_runs(path: Path) -> None:
    fake = FakeStub(path, drop={8})
    with fake, GdbStub.connect(path, timeout_seconds=TIMEOUT_SECONDS) as stub:
        stub.stop()
        with in_time(), pytest.raises(ResumedError):
            stub.write([(GuestPhysical(AT + number), b"x") for number in range(20)])
        assert running_soon(fake)


def test_after_an_error_the_connection_says_why_it_is_useless(path: Path) -> None:
    fake = FakeStub(path)
    with fake, GdbStub.connect(path, timeout_seconds=TIMEOUT_SECONDS) as stub:
        stub.stop()
        fake.hang_up()
        with pytest.raises(StubClosedError):
            stub.read([(AT, 1)])
        with pytest.raises(StubClosedError, match="cannot be used"):
            stub.resume()


def test_what_is_no_stub_is_told_in_one_line(path: Path) -> None:
    with pytest.raises(StubAbsentError, match="no such socket"):
        GdbStub.connect(path)
    path.touch()
    with pytest.raises(StubAbsentError, match="not a socket"):
        GdbStub.connect(path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(StubAbsentError, match="nothing listens"):
            GdbStub.connect(path)
        listener.listen(1)
        with in_time(), pytest.raises(StubTimeoutError, match="another gdb"):
            GdbStub.connect(path, timeout_seconds=TIMEOUT_SECONDS)
    with pytest.raises(StubAbsentError, match="too long"):
        GdbStub.connect(Path("x" * 200))
