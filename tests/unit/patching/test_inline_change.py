"""Plans for inline sites, walked over bytes."""

from collections.abc import Sequence

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.patching.protocol.errors import ChangeError
from optpolined.patching.protocol.execute import walk
from optpolined.patching.protocol.inline_change import (
    InlineChange,
    InlineForm,
    classify_inline,
    inline_steps,
)
from optpolined.patching.protocol.standing import Standing
from optpolined.patching.protocol.steps import Grace, Plan, Protocol, Step, StepPhase, Sync, Write
from optpolined.patching.protocol.transport import WRITTEN, Differs, Outcome, TransportKind

COMPARE = GuestVirtual(0xFFFFFFFF81000100)
BRANCH = GuestVirtual(COMPARE + 9)
ENTRY = GuestVirtual(0xFFFFFFFFC0001000)


def learned(target: int) -> InlineForm:
    low_half = (target & 0xFFFF_FFFF).to_bytes(4, "little")
    distance = (target - BRANCH - 5).to_bytes(4, "little", signed=True)
    return InlineForm(b"\x48\x81\xf8" + low_half, b"\xe8" + distance)


FIRST = learned(0xFFFFFFFF81400000)
SECOND = learned(0xFFFFFFFF81500000)
UNLEARNED = InlineForm(b"\x48\x81\xf8\xff\xff\xff\xff", learned(0xFFFFFFFF82000000).branch)


def change(before: InlineForm, after: InlineForm) -> InlineChange:
    return InlineChange(
        COMPARE,
        BRANCH,
        before,
        after,
        UNLEARNED,
        prepare=(Write(ENTRY, b"\0", b"\1"),),
        disarm=Write(ENTRY, b"\1", b"\0"),
    )


def plan_of(*changes: InlineChange) -> Plan:
    return inline_steps(changes, Protocol.BREAKPOINT)


def phases(plan: Plan) -> list[StepPhase | str]:
    names = {Sync(): "sync", Grace(): "grace"}
    return [step.phase if isinstance(step, Step) else names[step] for step in plan]


POKE = [StepPhase.BREAK, "sync", StepPhase.TAIL, "sync", StepPhase.HEAD, "sync"]


class Memory:
    """Bytes that note syncs and grace periods among the writes."""

    kind = TransportKind.STOPPED

    def __init__(self, form: InlineForm) -> None:
        self.cells = {COMPARE: form.compare, BRANCH: form.branch, ENTRY: b"\0"}
        self.log: list[GuestVirtual | str] = []

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for write in writes:
            self.log.append(write.address)
            now = self.cells[write.address]
            outcomes.append(WRITTEN if now == write.expect else Differs(now))
            if now == write.expect:
                self.cells[write.address] = write.data
        return outcomes

    def sync(self) -> None:
        self.log.append("sync")

    def grace(self) -> None:
        self.log.append("grace")

    @property
    def form(self) -> InlineForm:
        return InlineForm(self.cells[COMPARE], self.cells[BRANCH])


def test_the_first_learning_needs_no_grace_period() -> None:
    plan = plan_of(change(UNLEARNED, FIRST))
    assert phases(plan) == [StepPhase.PREPARE, StepPhase.UNREACHED, *POKE, StepPhase.DISARM]


def test_a_retarget_hides_waits_rewrites_and_shows() -> None:
    plan = plan_of(change(FIRST, SECOND))
    hide = [StepPhase.PREPARE, *POKE, StepPhase.DISARM]
    show = [StepPhase.PREPARE, *POKE, StepPhase.DISARM]
    assert phases(plan) == [*hide, "grace", StepPhase.UNREACHED, *show]


def test_a_revert_waits_before_the_thunk_is_put_back() -> None:
    plan = plan_of(change(FIRST, UNLEARNED))
    assert phases(plan) == [
        StepPhase.PREPARE,
        *POKE,
        StepPhase.DISARM,
        "grace",
        StepPhase.UNREACHED,
    ]


def test_a_batch_waits_once() -> None:
    plan = plan_of(change(UNLEARNED, FIRST), change(FIRST, SECOND), change(SECOND, UNLEARNED))
    assert sum(isinstance(step, Grace) for step in plan) == 1


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(
    ("before", "after"),
    [(UNLEARNED, FIRST), (FIRST, SECOND), (FIRST, UNLEARNED)],
    ids=["learn", "retarget", "revert"],
)
def test_a_plan_ends_in_the_form_that_was_asked_for(
    before: InlineForm, after: InlineForm, protocol: Protocol
) -> None:
    memory = Memory(before)
    unguarded = InlineChange(COMPARE, BRANCH, before, after, UNLEARNED)
    report = walk(inline_steps([unguarded], protocol), memory, memory.grace)
    assert report.done == [0]
    assert memory.form == after


def test_the_branch_changes_only_while_the_compare_can_equal_nothing() -> None:
    memory = Memory(FIRST)
    walk(plan_of(change(FIRST, SECOND)), memory, memory.grace)
    rewritten = memory.log.index(BRANCH)
    assert memory.log.index("grace") < rewritten
    assert memory.log[rewritten + 1 :].count(COMPARE) == 3
    assert memory.cells[ENTRY] == b"\0"


def test_a_foreign_branch_leaves_the_site_on_its_slow_path() -> None:
    memory = Memory(FIRST)
    memory.cells[BRANCH] = b"\xcc" + FIRST.branch[1:]
    report = walk(plan_of(change(FIRST, SECOND)), memory, memory.grace)
    assert [refusal.phase for refusal in report.refused] == [StepPhase.UNREACHED]
    assert memory.cells[COMPARE] == UNLEARNED.compare
    assert memory.cells[ENTRY] == b"\0"


def test_no_grace_period_for_a_site_that_is_given_up() -> None:
    memory = Memory(FIRST)
    memory.cells[COMPARE] = b"\xcc" + FIRST.compare[1:]
    report = walk(plan_of(change(FIRST, SECOND)), memory, memory.grace)
    assert [refusal.phase for refusal in report.refused] == [StepPhase.BREAK]
    assert "grace" not in memory.log
    assert memory.cells[ENTRY] == b"\0"


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        (FIRST, FIRST, "nothing changes"),
        (FIRST, InlineForm(UNLEARNED.compare, FIRST.branch), "calls its thunk"),
        (FIRST, InlineForm(SECOND.compare, b"\x2e" + SECOND.branch), "its length"),
    ],
)
def test_changes_that_make_no_sense(before: InlineForm, after: InlineForm, complaint: str) -> None:
    with pytest.raises(ChangeError, match=complaint):
        change(before, after)


@pytest.mark.parametrize(
    ("found", "armed", "standing"),
    [
        (UNLEARNED, False, Standing.ORIGINAL),
        (FIRST, False, Standing.OURS),
        (InlineForm(UNLEARNED.compare, FIRST.branch), False, Standing.OURS),
        (InlineForm(FIRST.compare, SECOND.branch), False, Standing.FOREIGN),
        (InlineForm(b"\xcc" + FIRST.compare[1:], SECOND.branch), True, Standing.INTERRUPTED),
        (InlineForm(b"\xcc" + FIRST.compare[1:], FIRST.branch), False, Standing.FOREIGN),
        (InlineForm(FIRST.compare, b"\xcc" + FIRST.branch[1:]), True, Standing.FOREIGN),
        (InlineForm(b"\x90" + FIRST.compare[1:], FIRST.branch), False, Standing.FOREIGN),
        (InlineForm(b"", b""), False, Standing.FOREIGN),
    ],
)
def test_what_stands_at_an_inline_site(found: InlineForm, armed: bool, standing: Standing) -> None:
    assert classify_inline(BRANCH, found, UNLEARNED, armed=armed) is standing
