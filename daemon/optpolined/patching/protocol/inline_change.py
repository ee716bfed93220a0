"""Changing an inline site: an immediate and a branch, as one atomic change.

    compare:  cmp   $imm32, %reg          cmp   $imm32, %reg
              jne   slow                  jne   slow
    branch:   call  target                jmp   target
              jmp   done            slow: jmp   thunk
    slow:     call  thunk
    done:

Unlearned, the immediate is -1, which no pointer equals, and the branch goes to the thunk.  The plan
of a change touches one instruction at a time:

    1. hide   cmp -> cmp $-1, by one of the two protocols: what enters takes the slow path
    2. grace  no task sleeps between cmp and branch, and no flags of the old compare are alive
    3. branch is rewritten: nothing can reach it
    4. show   cmp $-1 -> cmp $new, by the same protocol

A change leaves out the parts that it does not need.  One rule makes that safe: equal flags that are
alive always come from a compare with the target that the branch has now.  So step 1 is for sites
that compare with something, and step 2 for those whose branch is rewritten.  A wholly unlearned
site needs no step 2: either it never changed, or the plan that unlearned it waited before it
rewrote the branch.

Before step 1 the poke table gets its entries, which tell a new daemon what stood there.  While 0xCC
stands on the compare, the guest's handler jumps to `slow`; no 0xCC ever stands on the branch.  The
entries are disarmed while the grace period passes, because a probe may come meanwhile.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from optpolined.addresses import GuestVirtual
from optpolined.patching.protocol.errors import ChangeError
from optpolined.patching.protocol.standing import Standing
from optpolined.patching.protocol.steps import (
    Change,
    Grace,
    Plan,
    Protocol,
    SiteWrite,
    Step,
    StepPhase,
    Sync,
    Write,
    steps,
)
from optpolined.x86 import INT3

__all__ = ("InlineChange", "InlineForm", "classify_inline", "inline_steps")

_NO_POINTER = b"\xff\xff\xff\xff"


@dataclass(frozen=True, slots=True)
class InlineForm:
    """The two instructions of an inline site that change; each ends in its 32 bits."""

    compare: bytes
    branch: bytes


@dataclass(frozen=True, slots=True)
class InlineChange:
    """Replace ``before``, which stands at ``compare`` and ``branch``, by ``after``.

    ``unlearned`` is the site as it was built.  ``prepare`` and ``disarm`` are those of a
    :class:`Change` of the compare; ``prepare`` also notes the branch in the poke table.
    """

    compare: GuestVirtual
    branch: GuestVirtual
    before: InlineForm
    after: InlineForm
    unlearned: InlineForm
    prepare: tuple[Write, ...] = ()
    disarm: Write | None = None

    def __post_init__(self) -> None:
        if self.before == self.after:
            raise ChangeError(f"inline site {self.compare:#x}: nothing changes")
        if self.unlearned.compare[-4:] != _NO_POINTER:
            raise ChangeError(f"inline site {self.compare:#x}: was not built to compare with -1")
        if self.after.compare == self.unlearned.compare and self.after != self.unlearned:
            raise ChangeError(f"inline site {self.compare:#x}: an unlearned one calls its thunk")
        if len(self.before.branch) != len(self.after.branch):
            raise ChangeError(f"inline site {self.compare:#x}: its branch cannot change its length")

    @property
    def rewrites(self) -> bool:
        """Whether the branch gets another target."""
        return self.before.branch != self.after.branch

    @property
    def hides(self) -> bool:
        """Whether the site compares with something, or holds a breakpoint of ours."""
        return self.before.compare != self.unlearned.compare

    @property
    def waits(self) -> bool:
        """Whether its branch may be rewritten only after a grace period."""
        return self.rewrites and self.before != self.unlearned

    @property
    def shows(self) -> bool:
        """Whether it compares with something at the end."""
        return self.after.compare != self.unlearned.compare


def inline_steps(changes: Sequence[InlineChange], protocol: Protocol) -> Plan:
    """Return the plan that makes ``changes``, with one grace period for all that need one.

    :raise ChangeError: as for :func:`optpolined.patching.protocol.steps.steps`.
    """
    numbered = list(enumerate(changes))
    prepare = [SiteWrite(n, write) for n, change in numbered for write in change.prepare]
    disarm = [SiteWrite(n, change.disarm) for n, change in numbered if change.disarm]
    rewrite = [
        SiteWrite(n, Write(change.branch, change.before.branch, change.after.branch))
        for n, change in numbered
        if change.rewrites
    ]
    hide = {
        n: Change(change.compare, change.before.compare, change.unlearned.compare)
        for n, change in numbered
        if change.hides
    }
    show = {
        n: Change(change.compare, change.unlearned.compare, change.after.compare)
        for n, change in numbered
        if change.shows
    }
    plan: list[Step | Sync | Grace] = [*_step(StepPhase.PREPARE, prepare), *_steps(hide, protocol)]
    if any(change.waits for change in changes):
        plan += [*_step(StepPhase.DISARM, disarm), Grace()]
        disarm = [item for item in disarm if item.change in show]
        rearm = [SiteWrite(item.change, _reverse(item.write)) for item in disarm]
        plan += [*_step(StepPhase.UNREACHED, rewrite), *_step(StepPhase.PREPARE, rearm)]
    else:
        plan += _step(StepPhase.UNREACHED, rewrite)
    return (*plan, *_steps(show, protocol), *_step(StepPhase.DISARM, disarm))


def classify_inline(
    branch: GuestVirtual, found: InlineForm, unlearned: InlineForm, *, armed: bool
) -> Standing:
    """Tell what an inline site holds; ``armed`` is the state of the compare's poke-table entry.

    OURS compares with -1, or with the target of its branch.  INTERRUPTED is a 0xCC in front of any
    immediate, because the branch may have changed since.
    """
    if found == unlearned:
        return Standing.ORIGINAL
    if not (
        unlearned.compare[-4:] == _NO_POINTER
        and _same_but(1, found.compare, unlearned.compare)
        and _same_but(0, found.branch, unlearned.branch)
    ):
        return Standing.FOREIGN
    if found.compare[0] == INT3:
        return Standing.INTERRUPTED if armed else Standing.FOREIGN
    target = branch + len(found.branch) + int.from_bytes(found.branch[-4:], "little", signed=True)
    low_half = (target & 0xFFFF_FFFF).to_bytes(4, "little")
    ours = found.compare[0] == unlearned.compare[0] and found.compare[-4:] in (
        _NO_POINTER,
        low_half,
    )
    return Standing.OURS if ours else Standing.FOREIGN


def _same_but(head: int, found: bytes, built: bytes) -> bool:
    """Whether two instructions differ in their first ``head`` bytes and last four at most."""
    return len(found) == len(built) and found[head:-4] == built[head:-4]


def _step(phase: StepPhase, writes: Iterable[SiteWrite]) -> list[Step]:
    in_order = tuple(sorted(writes, key=lambda item: item.write.address))
    return [Step(phase, in_order)] if in_order else []


def _steps(changes: Mapping[int, Change], protocol: Protocol) -> Iterator[Step | Sync]:
    """Give the steps of numbered changes, with their numbers."""
    numbers = list(changes)
    for step in steps(list(changes.values()), protocol):
        if isinstance(step, Sync):
            yield step
            continue
        writes = tuple(SiteWrite(numbers[item.change], item.write) for item in step.writes)
        yield Step(step.phase, writes)


def _reverse(write: Write) -> Write:
    return Write(write.address, write.data, write.expect)
