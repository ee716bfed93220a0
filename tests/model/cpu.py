"""One task, one instruction at a time: the bytes that it may fetch, and what they do.

A task makes calls, one after the other: it picks a call site and a value for the site's register,
executes what stands there, and must arrive in the function that the register names.  A static call
has no register, and must arrive in one that its key names at that moment.  Thunks, learning stubs
and functions are code that never changes, so to pass through one is one step.

The int3 handler is that of guest/module/int3.c, and each of its looks at memory is a step of its
own.  While it sees 0xCC and IDLE it looks again, a bounded number of times; each time that is
wrong, a whole change of the site has passed between its two looks.  So here it looks as often as it
needs, and gives up where 0xCC and IDLE stand at one and the same moment.
"""

from collections.abc import Iterator
from itertools import product

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module import abi
from optpolined.kernel.module.poke_table import ENTRY_SIZE, home
from optpolined.patching.arena import UNIT
from optpolined.x86 import INT3
from tests.model.instructions import compute, learn
from tests.model.listing import Listing, Op
from tests.model.rules import Handler, Kind, Violation
from tests.model.task import AT_REST, IN_FUNCTION, RESTS, Call, Task
from tests.model.timeline import Moment
from tests.model.world import (
    ARENA,
    CALLER,
    FUNCTIONS,
    LEARN_STUBS,
    POKE_ORDER,
    RETURN_THUNK,
    TABLE_OFFSET,
    THUNKS,
    describe,
    in_arena,
    offset_of,
)

Stale = frozenset[tuple[int, int]]
"""Old bytes, by address, that a vCPU may still fetch beside the new ones."""

FRESH: Stale = frozenset()


_TRAPPED, _SEEN = 1, 2
_PUSHING = (abi.SiteKind.CALL, abi.SiteKind.STATIC_CALL)


class Cpu:
    """The steps of a task that makes any of ``calls``."""

    def __init__(self, listing: Listing, calls: tuple[Call, ...], handler: Handler) -> None:
        self._listing = listing.at
        self._longest = {at: max(map(len, instructions)) for at, instructions in listing.at.items()}
        self._calls = calls
        self._handler = handler

    def steps(self, task: Task, stale: Stale, moment: Moment) -> Iterator[tuple[Task, Stale]]:
        """What the task may do next on a vCPU, and what the vCPU may then still fetch.

        :raise Violation: it may do what must never happen.
        """
        if task.trap:
            yield self._handle(task, moment), FRESH
        elif task.at == RESTS:
            for number, call in enumerate(self._calls):
                started = AT_REST._replace(call=number)
                yield self._go(started, call.site.entry, moment), stale
        elif task.at == IN_FUNCTION:
            back = task._replace(stack=task.stack[:-1])
            yield self._go(back, task.stack[-1], moment), stale
        else:
            for op in self._fetch(task, stale, moment):
                if op.name == "int3":
                    yield task._replace(trap=_TRAPPED, equal=False, below=False), FRESH
                else:
                    yield self._execute(task, op, moment), stale

    def _fetch(self, task: Task, stale: Stale, moment: Moment) -> list[Op]:
        at = task.at
        if in_arena(at) and moment.score.owners[(at - ARENA) // UNIT] != task.block:
            raise Violation(Kind.FREED, f"{describe(at)} is not the block that was entered")
        known = self._listing.get(at)
        if known is None:
            raise Violation(Kind.TORN, f"no instruction was ever planned at {describe(at)}")
        offset = offset_of(at)
        assert offset is not None
        now = moment.image[offset : offset + self._longest[at]]
        choices: list[tuple[int, ...]] = [(byte,) for byte in now]
        for address, old in stale:
            if 0 <= address - at < len(choices):
                choices[address - at] += (old,)
        ops = []
        for fetched in map(bytes, product(*choices)):
            whole = [op for code, op in known.items() if fetched.startswith(code)]
            if not whole:
                raise Violation(Kind.TORN, f"{fetched.hex(' ')} at {describe(at)}")
            ops += whole
        return list(dict.fromkeys(ops))

    def _execute(self, task: Task, op: Op, moment: Moment) -> Task:
        after = task.at + op.size
        match op.name:
            case "je" | "jne" | "jae":
                taken = not task.below if op.name == "jae" else task.equal == (op.name == "je")
                went = task._replace(equal=task.equal and not taken, below=False)
                return self._go(went, op.value if taken else after, moment)
            case "call":
                return self._go(task._replace(stack=(*task.stack, after)), op.value, moment)
            case "jmp":
                return self._go(task, op.value, moment)
            case "ret":
                return self._return(task, moment)
        return self._go(compute(task, self._calls[task.call], op), after, moment)

    def _go(self, task: Task, to: int, moment: Moment) -> Task:
        """Return the task at ``to``, or where code that never changes takes it from there."""
        call = self._calls[task.call]
        if in_arena(to):
            owner = moment.score.owners[(to - ARENA) // UNIT]
            block = task.block or owner
            if not block:
                raise Violation(Kind.FREED, f"{describe(to)} is entered, and free")
            return task._replace(at=to, block=block)
        task = task._replace(block=0)
        if to in LEARN_STUBS or to in THUNKS:
            return self._go_slow(task, GuestVirtual(to), moment)
        if to in FUNCTIONS:
            return self._arrive(task, GuestVirtual(to), moment)
        if to == RETURN_THUNK:
            return self._return(task, moment)
        if to == call.site.done:
            return self._end(task, moment)
        return task._replace(at=to)

    def _go_slow(self, task: Task, to: GuestVirtual, moment: Moment) -> Task:
        """Through a thunk, or a learning stub and its thunk, to what their register names."""
        call = self._calls[task.call]
        stub = LEARN_STUBS.get(to)
        register = THUNKS[to] if stub is None else stub
        if register is not call.site.register:
            meant = "its key" if call.site.register is None else call.site.register.name
            raise Violation(Kind.WRONG_TARGET, f"goes where {register.name} says, not {meant}")
        return self._arrive(task if stub is None else learn(task, call), call.function, moment)

    def _return(self, task: Task, moment: Moment) -> Task:
        """Not of a function that was called: those return by themselves."""
        if task.stack[-1] == CALLER:
            return self._end(task, moment)
        return self._go(task._replace(stack=task.stack[:-1]), task.stack[-1], moment)

    def _arrive(self, task: Task, function: GuestVirtual | None, moment: Moment) -> Task:
        """In a function, which must be the one that the register, or the key, names."""
        call = self._calls[task.call]
        named = moment.score.named if call.function is None else {call.function}
        if function not in named or function is None:
            raise Violation(Kind.WRONG_TARGET, f"{_shown(function)} instead of {_shown(*named)}")
        if task.arrived:
            raise Violation(Kind.NOT_ONCE, f"{describe(function)} is called twice")
        if task.changed:
            shown = [f"{register.name} is {value:#x}" for register, value in task.changed]
            raise Violation(Kind.REGISTERS, ", ".join(shown))
        depth = 2 if call.site.is_call else 1
        returns = call.site.returns if call.site.is_call else {CALLER}
        if len(task.stack) != depth or task.stack[-1] not in returns:
            raise Violation(Kind.STACK, f"{[describe(item) for item in task.stack]} in a function")
        if task.stack[-1] in (CALLER, call.site.done):
            return AT_REST
        return task._replace(at=IN_FUNCTION, arrived=True, equal=False, below=False, awaited=False)

    def _end(self, task: Task, moment: Moment) -> Task:
        call = self._calls[task.call]
        does_nothing = call.function is None and None in moment.score.named
        if not (task.arrived or does_nothing):
            named = moment.score.named if call.function is None else {call.function}
            raise Violation(Kind.NOT_ONCE, f"{_shown(*named)} is never called")
        if task.stack != (CALLER,):
            raise Violation(Kind.STACK, f"{[describe(item) for item in task.stack]} at the end")
        return AT_REST

    def describe(self, task: Task, stale: Stale) -> str:
        """Where the task is, for a reader of a counterexample."""
        if task.at == RESTS:
            return "at rest"
        where = describe(task.at) if task.at != IN_FUNCTION else "in its function"
        function = self._calls[task.call].function
        called = "its key" if function is None else describe(function)
        state = [f"calls {called}: {where}"]
        state += ["in the int3 handler"] * bool(task.trap) + ["equal"] * task.equal
        state += [f"stack {[describe(item) for item in task.stack]}"] * (len(task.stack) > 1)
        state += ["awaited"] * task.awaited
        if stale:
            state.append(
                f"may fetch old bytes at {describe(min(stale)[0])} and {len(stale) - 1} more"
            )
        return f"({', '.join(state)})"

    def _handle(self, task: Task, moment: Moment) -> Task:
        """One step of the int3 handler, which runs with interrupts off."""
        entry = _find(moment.image, task.at)
        gone = self._handler.looks_at_byte and moment.byte(task.at) != INT3
        if task.trap == _TRAPPED:
            if entry is None:
                raise Violation(Kind.UNHANDLED, f"{describe(task.at)} is not in the table")
            return task._replace(trap=0 if gone else _SEEN)
        assert entry is not None
        if entry.state == abi.PokeState.ARMED:
            return self._emulate(task._replace(trap=0), entry, moment)
        if gone and self._handler.looks_again:
            return task._replace(trap=_TRAPPED)
        raise Violation(Kind.UNHANDLED, f"0xCC at {describe(task.at)}, and its entry says IDLE")

    def _emulate(self, task: Task, entry: abi.PokeEntryLayout, moment: Moment) -> Task:
        if entry.kind == abi.SiteKind.BRANCH:
            raise Violation(Kind.UNHANDLED, f"0xCC at {describe(task.at)}, an inline branch")
        if entry.kind in _PUSHING and self._handler.pushes:
            task = task._replace(stack=(*task.stack, entry.site + entry.length))
        return self._go(task, entry.slow_path, moment)


def _shown(*functions: GuestVirtual | None) -> str:
    return " or ".join(
        "nothing" if function is None else describe(function) for function in functions
    )


def _find(image: bytes, site: int) -> abi.PokeEntryLayout | None:
    """The entry of ``site``, as optp_poke_find() in int3.c searches for it."""
    place = home(GuestVirtual(site), POKE_ORDER)
    for _ in range(1 << POKE_ORDER):
        offset = TABLE_OFFSET + place * ENTRY_SIZE
        entry = abi.PokeEntryLayout.from_buffer_copy(image, offset)
        if entry.site == site:
            return entry
        if not entry.site:
            return None
        place = (place + 1) % (1 << POKE_ORDER)
    return None
