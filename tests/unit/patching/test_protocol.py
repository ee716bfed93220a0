"""The protocols, walked over bytes."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.api.refusal import Refusal
from optpolined.patching.protocol.errors import ChangeError
from optpolined.patching.protocol.execute import GivenUp, execute
from optpolined.patching.protocol.steps import Change, Protocol, Step, StepPhase, Sync, Write, steps
from optpolined.patching.protocol.transport import (
    UNMAPPED,
    WRITTEN,
    Differs,
    Outcome,
    TransportKind,
)

SITE = GuestVirtual(0xFFFFFFFF81000100)
OLD = bytes.fromhex("e8 11 22 33 44")
NEW = bytes.fromhex("e8 55 66 77 88")


class Bytes:
    """Memory that notes each write and sync; another program may write before the n-th write."""

    def __init__(self, memory: dict[GuestVirtual, bytes]) -> None:
        self.cells = {a + i: byte for a, data in memory.items() for i, byte in enumerate(data)}
        self.log: list[Write] = []
        self.syncs: list[int] = []
        self.kind = TransportKind.STOPPED
        self.meddle: dict[int, tuple[GuestVirtual, bytes]] = {}

    def read(self, address: GuestVirtual, size: int) -> bytes:
        return bytes(self.cells[address + i] for i in range(size))

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for write in writes:
            if len(self.log) in self.meddle:
                self.put(*self.meddle.pop(len(self.log)))
            self.log.append(write)
            now = self.read(write.address, len(write.data))
            outcomes.append(WRITTEN if now == write.expect else Differs(now))
            if now == write.expect:
                self.put(write.address, write.data)
        return outcomes

    def sync(self) -> None:
        self.syncs.append(len(self.log))

    def put(self, address: GuestVirtual, data: bytes) -> None:
        self.cells.update({address + i: byte for i, byte in enumerate(data)})


ENTRY = GuestVirtual(0xFFFFFFFFC0001000)
SITE_PHASES = (StepPhase.BREAK, StepPhase.TAIL, StepPhase.HEAD)


def guarded_change() -> Change:
    return Change(
        SITE,
        OLD,
        NEW,
        prepare=(Write(ENTRY, b"\0", b"\1"),),
        disarm=Write(ENTRY, b"\1", b"\0"),
    )


def test_breakpoint_order_is_prepare_break_tail_head_disarm() -> None:
    plan = steps([guarded_change()], Protocol.BREAKPOINT)
    assert [step.phase if isinstance(step, Step) else step for step in plan] == [
        StepPhase.PREPARE,
        StepPhase.BREAK,
        Sync(),
        StepPhase.TAIL,
        Sync(),
        StepPhase.HEAD,
        Sync(),
        StepPhase.DISARM,
    ]


def test_every_phase_of_a_batch_ends_before_the_next_begins() -> None:
    other = GuestVirtual(SITE + 64)
    batch = [guarded_change(), Change(other, OLD, NEW)]
    for step in steps(batch, Protocol.BREAKPOINT):
        if isinstance(step, Step) and step.phase in SITE_PHASES:
            assert [item.change for item in step.writes] == [0, 1]


def test_between_break_and_head_the_first_byte_is_a_breakpoint() -> None:
    memory = Bytes({SITE: OLD, ENTRY: b"\0"})
    execute([guarded_change()], Protocol.BREAKPOINT, memory)
    site_writes = [write for write in memory.log if write.address == SITE]
    assert [write.data[0] for write in site_writes] == [0xCC, 0xCC, NEW[0]]
    assert [write.data[1:] for write in site_writes] == [OLD[1:], NEW[1:], NEW[1:]]


def test_stopped_writes_the_whole_instruction_once() -> None:
    memory = Bytes({SITE: OLD})
    execute([Change(SITE, OLD, NEW)], Protocol.STOPPED, memory)
    assert memory.log == [Write(SITE, OLD, NEW)]


def test_every_vcpu_is_serialised_after_each_write_to_a_site() -> None:
    memory = Bytes({SITE: OLD, ENTRY: b"\0"})
    execute([guarded_change()], Protocol.BREAKPOINT, memory)
    assert memory.syncs == [2, 3, 4]  # after BREAK, TAIL and HEAD


def test_nothing_is_serialised_for_changes_that_are_given_up() -> None:
    memory = Bytes({SITE: bytes(5), ENTRY: b"\0"})
    execute([guarded_change()], Protocol.BREAKPOINT, memory)
    assert memory.syncs == []


def test_only_a_stopped_transport_writes_whole_instructions() -> None:
    memory = Bytes({SITE: OLD, ENTRY: b"\0"})
    memory.kind = TransportKind.LIVE
    with pytest.raises(ChangeError, match="stops the guest"):
        execute([guarded_change()], Protocol.STOPPED, memory)
    assert memory.log == []


def test_what_is_not_mapped_is_told_from_what_differs() -> None:
    change = Write(SITE, OLD, NEW)
    gone = GivenUp(0, StepPhase.BREAK, change, UNMAPPED)
    assert (gone.reason, str(gone.outcome)) == (Refusal.UNMAPPED, "unmapped")
    probed = GivenUp(0, StepPhase.BREAK, change, Differs(b"\xcc\x11"))
    assert (probed.reason, str(probed.outcome)) == (Refusal.FOREIGN_BREAKPOINT, "cc 11")


def test_stopped_refuses_a_site_that_holds_a_breakpoint_of_ours() -> None:
    change = Change(SITE, b"\xcc" + OLD[1:], NEW)
    with pytest.raises(ChangeError, match="holds a breakpoint"):
        steps([change], Protocol.STOPPED)


def test_an_interrupted_change_is_ended_without_a_second_breakpoint() -> None:
    memory = Bytes({SITE: b"\xcc" + NEW[1:]})
    report = execute([Change(SITE, b"\xcc" + NEW[1:], OLD)], Protocol.BREAKPOINT, memory)
    assert report.done == [0]
    assert memory.read(SITE, 5) == OLD


def test_a_new_instruction_that_is_a_breakpoint_is_refused() -> None:
    with pytest.raises(ChangeError, match="would be a breakpoint"):
        Change(SITE, OLD, b"\xcc" + OLD[1:])


@given(
    st.integers(0, 4),
    st.binary(min_size=5, max_size=5).filter(lambda data: data != OLD),
    st.sampled_from(Protocol),
)
def test_foreign_bytes_are_never_overwritten(when: int, foreign: bytes, protocol: Protocol) -> None:
    memory = Bytes({SITE: OLD, ENTRY: b"\0"})
    memory.meddle[when] = (SITE, foreign)
    report = execute([guarded_change()], protocol, memory)
    expected = {write.expect for write in memory.log if write.address == SITE}
    if report.refused:
        assert memory.read(SITE, 5) == foreign
        assert report.done == []
    else:  # the foreign bytes are the expected ones, or came after our last write
        assert foreign in expected | {memory.read(SITE, 5)} or memory.meddle


def test_a_site_given_up_before_its_breakpoint_is_disarmed() -> None:
    memory = Bytes({SITE: bytes.fromhex("cc 11 22 33 44"), ENTRY: b"\0"})
    report = execute([guarded_change()], Protocol.BREAKPOINT, memory)
    assert [refusal.phase for refusal in report.refused] == [StepPhase.BREAK]
    assert memory.read(ENTRY, 1) == b"\0"


def test_a_site_lost_while_it_held_our_breakpoint_stays_armed() -> None:
    memory = Bytes({SITE: OLD, ENTRY: b"\0"})
    memory.meddle[2] = (SITE, bytes.fromhex("90 90 90 90 90"))
    report = execute([guarded_change()], Protocol.BREAKPOINT, memory)
    assert [refusal.phase for refusal in report.refused] == [StepPhase.TAIL]
    assert memory.read(ENTRY, 1) == b"\1"


def test_one_refused_site_does_not_hold_up_the_others() -> None:
    other = GuestVirtual(SITE + 64)
    memory = Bytes({SITE: bytes(5), ENTRY: b"\0", other: OLD})
    report = execute([guarded_change(), Change(other, OLD, NEW)], Protocol.BREAKPOINT, memory)
    assert report.done == [1]
    assert memory.read(other, 5) == NEW


def test_a_table_that_changes_ends_the_whole_batch_before_any_breakpoint() -> None:
    other = GuestVirtual(SITE + 64)
    memory = Bytes({SITE: OLD, ENTRY: b"\7", other: OLD})
    report = execute([guarded_change(), Change(other, OLD, NEW)], Protocol.BREAKPOINT, memory)
    assert [refusal.phase for refusal in report.refused] == [StepPhase.PREPARE]
    assert report.done == []
    assert memory.read(SITE, 5) == memory.read(other, 5) == OLD
    assert memory.read(ENTRY, 1) == b"\7"
