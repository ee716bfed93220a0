"""Seeded faults of static calls and of forms that look at a key."""

from collections.abc import Iterator
from typing import Any

from optpolined.addresses import GuestVirtual
from optpolined.codegen import source
from optpolined.codegen.forms import Form, Key, Keyed, LearnKeys
from optpolined.kernel.sites.static_calls import StaticPlace, static_instruction
from optpolined.patching.counter_records import RecordAllocator
from optpolined.patching.protocol import steps
from optpolined.patching.protocol.standing import Standing
from optpolined.patching.protocol.steps import Change, StepPhase, Write
from optpolined.x86 import INT3, Register
from tests.model.faults import Fault, PhasedWrites, without_breakpoint
from tests.model.keyed_forms import BASE_KEY, KEYED_CALL, held, keyed_reuse
from tests.model.rules import Handler, Kind, Rules
from tests.model.scenarios import Scenario, site_scenario
from tests.model.static import CALL, JMP, TRAMPOLINE, StaticCode, Target, static_scenario
from tests.model.world import F1, F2, F3

_TRAP = bytes([INT3])

_right_writes = steps.breakpoint_writes
_right_note = source.note_key
_right_records = RecordAllocator.of_block


def form_faults() -> Iterator[Fault]:
    """All of them."""
    yield from _of_static_calls()
    yield from _of_keys()


def _tail_before_breakpoint(change: Change) -> PhasedWrites:
    """At the call; the trampoline is changed as it should be."""
    early = change.before[:1] + change.after[1:]
    for phase, write in _right_writes(change):
        if change.site == TRAMPOLINE or phase not in (StepPhase.BREAK, StepPhase.TAIL):
            yield phase, write
        elif phase is StepPhase.BREAK:
            yield phase, Write(change.site, change.before, early)
        else:
            yield phase, Write(change.site, early, _TRAP + early[1:])


def _trampoline_without_breakpoint(change: Change) -> PhasedWrites:
    return (without_breakpoint if change.site == TRAMPOLINE else _right_writes)(change)


def _goes_where_it_was_built_for(*_: Any, **__: Any) -> GuestVirtual:
    return F1


def _goes_to_the_trampoline(place: StaticPlace, *_: Any, **__: Any) -> GuestVirtual:
    return place.trampoline


def _nothing_is_a_nop(
    place: StaticPlace, target: GuestVirtual | None, return_thunk: GuestVirtual | None
) -> bytes:
    if target is None and place.address != place.trampoline:
        return bytes.fromhex("0f1f440000")
    return static_instruction(place, target, return_thunk)


def _static(*targets: Target, code: StaticCode | None = None, **options: Any) -> Scenario:
    return static_scenario("static", code or StaticCode([CALL], F1), *targets, **options)


def _of_static_calls() -> Iterator[Fault]:
    writes = "optpolined.patching.protocol.steps.breakpoint_writes"
    slow_path = "optpolined.patching.static_calls.slow_path"
    live = _static(F3, rules=Rules(live=True))
    early = ((writes, _tail_before_breakpoint),)
    yield Fault("static call's tail changed before its head is 0xCC", Kind.TORN, live, early)
    bare = ((writes, _trampoline_without_breakpoint),)
    yield Fault("trampoline changed without int3 phase", Kind.TORN, live, bare)
    built = ((slow_path, _goes_where_it_was_built_for),)
    yield Fault("slow path to a former target", Kind.WRONG_TARGET, _static(F2, F3), built)
    ring = ((slow_path, _goes_to_the_trampoline),)
    yield Fault("slow path of a trampoline is the trampoline", Kind.ENDLESS, _static(F2), ring)
    pushless = _static(F2, rules=Rules(handler=Handler(pushes=False)))
    yield Fault("push forgotten at a static call", Kind.STACK, pushless)
    nop = (("optpolined.patching.static_calls.static_instruction", _nothing_is_a_nop),)
    tail = StaticCode([JMP], F1, has_return_thunk=False)
    yield Fault("nothing is a nop at a tail call", Kind.TORN, _static(None, code=tail), nop)
    blind = (("optpolined.patching.recovery.classify_static", lambda *_, **__: Standing.ORIGINAL),)
    yield Fault("a static call half-way is left alone", Kind.TEXT, _static(F2, dies=True), blind)


def _without_check(_register: str, target: GuestVirtual) -> Iterator[str]:
    yield f"jmp {target:#x}"


def _keeps_base(*args: Any) -> Iterator[str]:
    """As if it were the block's own."""
    for line in _right_note(*args):
        if line not in ("push rcx", "pop rcx"):
            yield line


def _pops_in_push_order(*args: Any) -> Iterator[str]:
    *lines, first, second = _right_note(*args)
    yield from (*lines, second, first)


def _shifts_too_far(key: Key, register: Register, key_table: int) -> Iterator[str]:
    return _right_note(Key(key.register, key.shift + 1, key.bits), register, key_table)


def _table_is_record(*args: Any) -> tuple[int, int | None] | None:
    found = _right_records(*args)
    return found and (found[0], None if found[1] is None else found[0])


def _keyed(form: Form) -> Scenario:
    return site_scenario(
        "keyed",
        [KEYED_CALL],
        (F1, F2),
        {KEYED_CALL.address: form},
        key=BASE_KEY,
        keys=held(BASE_KEY, 0, 1),
    )


def _of_keys() -> Iterator[Fault]:
    """What checks each block before it is written must not find them first."""
    unverified = ("optpolined.codegen.decode.Decoder.verify", lambda *_, **__: None)
    note = "optpolined.codegen.source.note_key"
    learning, found = _keyed(LearnKeys(BASE_KEY)), _keyed(Keyed(BASE_KEY, ((0, F1), (1, F2))))
    unchecked = (("optpolined.codegen.source.direct_jump", _without_check), unverified)
    yield Fault("a keyed leaf does not check its target", Kind.WRONG_TARGET, found, unchecked)
    for name, replacement in (
        ("the key's register is not given back", _keeps_base),
        ("keys noted by a wrong shift", _shifts_too_far),
    ):
        yield Fault(name, Kind.REGISTERS, learning, ((note, replacement), unverified))
    swapped = ((note, _pops_in_push_order), unverified)
    yield Fault("registers come back in the wrong order", Kind.STACK, learning, swapped)
    table = (("optpolined.patching.counter_records.RecordAllocator.of_block", _table_is_record),)
    yield Fault("keys noted over the site's record", Kind.REGISTERS, learning, table)
    neither = Rules(grace_waits_for_running=False, grace_waits_for_sleeping=False)
    yield Fault("keyed block freed without grace period", Kind.FREED, keyed_reuse(neither))
    awake = Rules(grace_waits_for_sleeping=False)
    yield Fault("keyed block freed under a sleeper", Kind.FREED, keyed_reuse(awake))
