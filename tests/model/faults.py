"""Seeded faults: ways to get it wrong, each of which the model must catch.

A fault is a replacement in the daemon's own code, or a rule of the guest that does not hold.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, Chain, Form
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.module.poke_table import PokeEntry
from optpolined.kernel.sites.inline_part import InlinePart
from optpolined.kernel.sites.scan import Site
from optpolined.patching import inline_sites, patcher
from optpolined.patching.protocol import standing
from optpolined.patching.protocol import steps as protocol_steps
from optpolined.patching.protocol.inline_change import InlineChange, classify_inline, inline_steps
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
from optpolined.x86 import INT3, Register
from tests.model.daemon import Wanted, record_offset
from tests.model.forms import (
    CALL,
    CALL_CS,
    INLINE_CALL,
    INLINE_SPLIT,
    JMP,
    LIVE,
    SPLIT,
    cycle,
)
from tests.model.rules import Handler, Kind, Rules
from tests.model.scenarios import Scenario, site_scenario
from tests.model.world import F1, F2, HEADER_OF_MODEL, in_arena

PhasedWrites = Iterable[tuple[StepPhase, Write]]

_TRAP = bytes([INT3])

_right_writes = protocol_steps.breakpoint_writes
_right_entry = patcher.site_entry
_right_classify = standing.classify
_right_inline_entries = inline_sites.inline_entries
_right_classify_inline = classify_inline


@dataclass(frozen=True)
class Fault:
    """``replaced`` are public names in the code that runs, each with what takes its place."""

    name: str
    kind: Kind
    scenario: Scenario
    replaced: tuple[tuple[str, Any], ...] = ()

    def explore(self) -> None:
        """Explore the scenario with the fault in it."""
        with ExitStack() as stack:
            for name, replacement in self.replaced:
                stack.enter_context(patch(name, replacement))
            self.scenario.explore()


def _without_sync_after(phase: StepPhase) -> Callable[..., Plan]:
    """The protocol without its syncs after one phase."""

    def plan(changes: Sequence[Change], how: Protocol) -> Plan:
        whole = steps(changes, how)
        return [
            step
            for before, step in zip((None, *whole), whole, strict=False)
            if not (isinstance(step, Sync) and isinstance(before, Step) and before.phase is phase)
        ]

    return plan


def without_breakpoint(change: Change) -> PhasedWrites:
    half = change.before[:1] + change.after[1:]
    for phase, write in _right_writes(change):
        if phase is StepPhase.TAIL:
            yield phase, Write(change.site, change.before, half)
        elif phase is StepPhase.HEAD:
            yield phase, Write(change.site, half, change.after)
        elif phase is not StepPhase.BREAK:
            yield phase, write


def _head_before_tail(change: Change) -> PhasedWrites:
    half = change.after[:1] + change.before[1:]
    for phase, write in _right_writes(change):
        if phase is StepPhase.TAIL:
            yield phase, Write(change.site, _TRAP + change.before[1:], half)
        elif phase is StepPhase.HEAD:
            yield phase, Write(change.site, half, change.after)
        else:
            yield phase, write


def _moved(
    what: Callable[[Change, Write], bool], to: StepPhase
) -> Callable[[Change], PhasedWrites]:
    """The protocol with some of its writes in another phase."""

    def writes(change: Change) -> PhasedWrites:
        for phase, write in _right_writes(change):
            yield (to if what(change, write) else phase), write

    return writes


def _is_block(change: Change, write: Write) -> bool:
    return write in change.prepare and in_arena(write.address)


def _is_arming(change: Change, write: Write) -> bool:
    return write in change.prepare and not in_arena(write.address)


def _is_disarming(change: Change, write: Write) -> bool:
    return write == change.disarm


def _to_wrong_thunk(site: Site) -> PokeEntry:
    return replace(_right_entry(site), slow_path=HEADER_OF_MODEL.thunk[Register.RCX])


def _to_itself(site: Site) -> PokeEntry:
    return replace(_right_entry(site), slow_path=site.address)


def _too_short(site: Site) -> PokeEntry:
    return replace(_right_entry(site), original=site.original[1:])


def _wrong_record(record: int) -> int:
    return record_offset(record + 1)


def _leaves_interrupted(*args: Any, **options: Any) -> Standing:
    standing = _right_classify(*args, **options)
    return Standing.ORIGINAL if standing is Standing.INTERRUPTED else standing


def _without_minus_one(changes: Sequence[InlineChange], how: Protocol) -> Plan:
    """Each of the two instructions by itself, rightly, and not the pair of them."""
    prepare = [write for change in changes for write in change.prepare]
    branches = [Change(c.branch, c.before.branch, c.after.branch) for c in changes if c.rewrites]
    compares = [Change(c.compare, c.before.compare, c.after.compare) for c in changes]
    return (
        Step(StepPhase.PREPARE, tuple(SiteWrite(0, write) for write in prepare)),
        Grace(),
        *steps(branches, Protocol.STOPPED),
        Grace(),
        *steps(compares, how),
    )


def _without_grace(changes: Sequence[InlineChange], how: Protocol) -> Plan:
    return [step for step in inline_steps(changes, how) if not isinstance(step, Grace)]


def _branch_before_entries(changes: Sequence[InlineChange], how: Protocol) -> Plan:
    plan = inline_steps(changes, how)
    return sorted(plan, key=lambda step: not _is_rewrite(step))


def _is_rewrite(step: Step | Sync | Grace) -> bool:
    return isinstance(step, Step) and step.phase is StepPhase.UNREACHED


def _slow_path_is_done(part: InlinePart) -> tuple[PokeEntry, PokeEntry]:
    compare, branch = _right_inline_entries(part)
    done = GuestVirtual(INLINE_CALL.address + INLINE_CALL.length)
    return replace(compare, slow_path=done), branch


def _compare_is_a_call(part: InlinePart) -> tuple[PokeEntry, PokeEntry]:
    compare, branch = _right_inline_entries(part)
    return replace(compare, kind=SiteKind.CALL), branch


def _ends_at_once(changes: Sequence[InlineChange], how: Protocol) -> Plan:
    """A change that unlearns does not wait, as if its thunk were right under any flags."""
    plan = inline_steps(changes, how)
    unlearns = all(change.after == change.unlearned for change in changes)
    return [step for step in plan if not isinstance(step, Grace)] if unlearns else plan


def _leaves_inline_interrupted(*args: Any, **options: Any) -> Standing:
    standing = _right_classify_inline(*args, **options)
    return Standing.ORIGINAL if standing is Standing.INTERRUPTED else standing


_STEPS = "optpolined.patching.protocol.execute.steps"
_WRITES = "optpolined.patching.protocol.steps.breakpoint_writes"
_ENTRY = "optpolined.patching.patcher.site_entry"
_INLINE_ENTRIES = "optpolined.patching.inline_sites.inline_entries"
_PLAN = "optpolined.patching.patcher.inline_steps"


def faults() -> Iterator[Fault]:
    """All of them."""
    yield from _in_the_protocol()
    yield from _in_the_waiting()
    yield from _in_the_handler()
    yield from _in_recovery()


def _promotion(site: Site = CALL, rules: Rules | None = None, **options: Any) -> Scenario:
    promoted = {site.address: Chain((F1,))}
    return site_scenario("promotion", [site], (F1, F2), promoted, rules=rules, **options)


def _inline(*forms: Form, rules: Rules | None = None, dies: bool = False) -> Scenario:
    wanted: list[Wanted] = [{INLINE_CALL.address: form} for form in forms]
    return site_scenario("inline", [INLINE_CALL], (F1, F2), *wanted, rules=rules, dies=dies)


def _retarget(rules: Rules | None = None) -> Scenario:
    return _inline(Chain((F1,)), Chain((F2,)), rules=rules)


def _in_the_protocol() -> Iterator[Fault]:
    live = _promotion(rules=LIVE)
    yield Fault("no int3 phase", Kind.TORN, live, ((_WRITES, without_breakpoint),))
    yield Fault("head before tail", Kind.TORN, live, ((_WRITES, _head_before_tail),))
    never_synced = _promotion(rules=replace(LIVE, sync_serialises=False))
    yield Fault("no sync between phases", Kind.TORN, never_synced)
    for phase in (StepPhase.BREAK, StepPhase.TAIL):
        plan = ((_STEPS, _without_sync_after(phase)),)
        yield Fault(f"no sync after {phase.value}", Kind.TORN, live, plan)
    cut = _promotion(rules=Rules(stop_holds_sites=False), protocol=Protocol.STOPPED)
    yield Fault("a slice is cut inside a site", Kind.TORN, cut)
    late_block = _moved(_is_block, StepPhase.DISARM)
    yield Fault("block after branch", Kind.TORN, _promotion(), ((_WRITES, late_block),))
    late = _moved(_is_arming, StepPhase.HEAD)
    yield Fault("entry after breakpoint", Kind.UNHANDLED, _promotion(), ((_WRITES, late),))
    early = _moved(_is_disarming, StepPhase.TAIL)
    yield Fault("entry disarmed early", Kind.UNHANDLED, _promotion(), ((_WRITES, early),))
    records = (("tests.model.daemon.record_offset", _wrong_record),)
    yield Fault("another site's record", Kind.REGISTERS, _promotion(), records)


def _in_the_waiting() -> Iterator[Fault]:
    def reuse(rules: Rules) -> Scenario:
        return site_scenario("cycle", [CALL], (F1,), *cycle(CALL), rules=rules)

    neither = Rules(grace_waits_for_running=False, grace_waits_for_sleeping=False)
    running_only = Rules(grace_waits_for_sleeping=False)
    sleeping_only = Rules(grace_waits_for_running=False)
    yield Fault("no grace period before reuse", Kind.FREED, reuse(neither))
    yield Fault("grace period without sleepers", Kind.FREED, reuse(running_only))
    yield Fault("grace period without vCPUs", Kind.FREED, reuse(sleeping_only))
    wrong = Kind.WRONG_TARGET
    yield Fault(
        "cmp and call changed separately", wrong, _retarget(), ((_PLAN, _without_minus_one),)
    )
    yield Fault("call changed under old flags", wrong, _retarget(), ((_PLAN, _without_grace),))
    slept = "call rewritten while a preempted task holds old flags"
    yield Fault(slept, wrong, _retarget(running_only))
    there_and_back = _inline(Chain((F1,)), LEARNING, Chain((F2,)))
    yield Fault("old flags outlive unlearning", wrong, there_and_back, ((_PLAN, _ends_at_once),))


def _in_the_handler() -> Iterator[Fault]:
    blind = Rules(handler=Handler(looks_at_byte=False))
    yield Fault("handler does not look at the byte", Kind.UNHANDLED, _promotion(rules=blind))
    once = Rules(handler=Handler(looks_again=False))
    yield Fault("handler looks once", Kind.UNHANDLED, _promotion(rules=once))
    pushless = Rules(handler=Handler(pushes=False))
    yield Fault("push forgotten", Kind.STACK, _promotion(rules=pushless))
    wrong = ((_ENTRY, _to_wrong_thunk),)
    yield Fault("wrong slow path", Kind.WRONG_TARGET, _promotion(), wrong)
    yield Fault("slow path is the site", Kind.ENDLESS, _promotion(JMP), ((_ENTRY, _to_itself),))
    short = ((_ENTRY, _too_short),)
    yield Fault("return address of 5 bytes for 6", Kind.STACK, _promotion(CALL_CS), short)
    done = ((_INLINE_ENTRIES, _slow_path_is_done),)
    yield Fault("slow path behind the call", Kind.NOT_ONCE, _retarget(), done)
    pushes = ((_INLINE_ENTRIES, _compare_is_a_call),)
    yield Fault("a compare that pushes", Kind.STACK, _retarget(), pushes)


def _in_recovery() -> Iterator[Fault]:
    dies = _promotion(dies=True)
    left = (("optpolined.patching.recovery.classify", _leaves_interrupted),)
    yield Fault("half-way is left alone", Kind.TEXT, dies, left)
    first = _inline(Chain((F1,)), dies=True)
    unnoted = ((_PLAN, _branch_before_entries),)
    yield Fault("branch rewritten before it is noted", Kind.TEXT, first, unnoted)
    left = (("optpolined.patching.recovery.classify_inline", _leaves_inline_interrupted),)
    yield Fault("an inline part half-way is left alone", Kind.TEXT, first, left)
    anywhere = (("optpolined.kernel.paging.AddressSpace.is_contiguous", lambda *_: True),)
    split = _promotion(SPLIT, dies=True)
    yield Fault("a site in two pages is patched", Kind.TEXT, split, anywhere)
    torn = site_scenario(
        "promotion",
        [INLINE_SPLIT],
        (F1,),
        {INLINE_SPLIT.address: Chain((F1,))},
        protocol=Protocol.STOPPED,
        dies=True,
    )
    yield Fault("a compare in two pages is patched", Kind.TEXT, torn, anywhere)
