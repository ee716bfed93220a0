from collections.abc import Sequence

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import (
    ModuleGoneError,
    RequestBusyError,
    RequestFailedError,
    RequestTimeoutError,
)
from optpolined.kernel.module.abi import RequestOp
from optpolined.kernel.module.header import read_header
from optpolined.kernel.module.mailbox import Mailbox, MailboxWrite
from tests.unit.kernel.fake_guest import HEADER, FakeGuest


class Module:
    """Serves the mailbox while the host sleeps, as the guest's kernel thread does."""

    def __init__(self, *, naps: int = 3, results: dict[int, int] | None = None) -> None:
        self.guest = FakeGuest()
        self.served: list[int] = []
        self.seconds = 0.0
        self.order: list[GuestVirtual] = []
        self._naps = naps
        self._left = naps
        self._results = results or {}
        header = read_header(self.guest.space, HEADER)
        self.header = header
        self.mailbox = Mailbox(
            self.guest.space, header, self.write, clock=lambda: self.seconds, sleep=self.sleep
        )

    def write(self, writes: Sequence[MailboxWrite]) -> None:
        for write in writes:
            found = self.guest.space.read(write.address, len(write.expected))
            assert found == write.expected
            self.order.append(write.address)
            offset = write.address - HEADER
            raw = bytearray(bytes(self.guest.raw))
            raw[offset : offset + len(write.data)] = write.data
            self.guest.raw = type(self.guest.raw).from_buffer_copy(raw)
        self.guest.publish()

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        raw = self.guest.raw
        if raw.request_seq == raw.request_done_seq:
            return
        self._left -= 1
        if self._left <= 0:
            self._left = self._naps
            self.served.append(raw.request_op)
            raw.request_result = self._results.get(raw.request_op, 0)
            raw.request_done_seq = raw.request_seq
            self.guest.publish()


def test_requests_are_served_in_turn() -> None:
    module = Module()
    module.mailbox.request(RequestOp.HOLD)
    module.mailbox.request(RequestOp.GRACE)
    assert module.served == [RequestOp.HOLD, RequestOp.GRACE]
    op, seq = module.header.field("request_op"), module.header.field("request_seq")
    assert module.order == [op, seq, op, seq]


def test_the_sequence_wraps() -> None:
    module = Module()
    module.guest.raw.request_seq = module.guest.raw.request_done_seq = 0xFFFF_FFFF
    module.guest.publish()
    module.mailbox.request(RequestOp.SYNC)
    assert module.guest.raw.request_seq == 0


def test_a_refusal_is_told_by_its_errno() -> None:
    module = Module(results={RequestOp.MODULES: -28})
    with pytest.raises(RequestFailedError, match="MODULES with: No space") as caught:
        module.mailbox.request(RequestOp.MODULES)
    assert caught.value.errno == 28


@pytest.mark.parametrize("result", [-(2**31), 2**31 - 1, 1])
def test_a_result_that_is_no_errno(result: int) -> None:
    module = Module(results={RequestOp.SYNC: result})
    with pytest.raises(RequestFailedError):
        module.mailbox.request(RequestOp.SYNC)


def test_no_answer_in_time() -> None:
    module = Module(naps=10**9)
    with pytest.raises(RequestTimeoutError, match="GRACE"):
        module.mailbox.request(RequestOp.GRACE, timeout_seconds=2.0)
    assert 2.0 <= module.seconds < 2.1
    with pytest.raises(RequestBusyError, match="GRACE"):
        module.mailbox.post(RequestOp.SYNC)
    assert not module.mailbox.idle()


def test_what_an_earlier_daemon_asked_for_is_waited_for() -> None:
    module = Module()
    module.guest.raw.request_op = 77
    module.guest.raw.request_seq = 5
    module.guest.publish()
    with pytest.raises(RequestBusyError, match="request 77"):
        module.mailbox.post(RequestOp.SYNC)
    module.mailbox.request(RequestOp.SYNC)
    assert module.served == [77, RequestOp.SYNC]


def test_posting_does_not_wait() -> None:
    module = Module(naps=1)
    module.mailbox.post(RequestOp.GRACE)
    assert not module.mailbox.result()
    module.sleep(0.001)
    assert module.mailbox.result()
    assert module.mailbox.idle()


def test_a_reset_in_the_middle() -> None:
    module = Module()
    module.mailbox.post(RequestOp.GRACE)
    module.guest.raw.boot_nonce ^= 1
    module.guest.publish()
    with pytest.raises(ModuleGoneError):
        module.mailbox.result()
