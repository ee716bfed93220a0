"""One task, one instruction at a time: the bytes that it may fetch, and what they do.

A task makes calls, one after the other: it picks a call site and a value for the site's register,
executes what stands there, and must arrive in the function that the register names.  Thunks,
learning stubs and functions are code that nobody changes, so to pass through one is one step.

The int3 handler is that of guest/module/int3.c, and each of its looks at memory is a step of its
own.  While it sees 0xCC and IDLE it looks again, a bounded number of times; each time that is
wrong, a whole change of the site has passed between its two looks.  So here it looks as often as it
needs, and gives up where 0xCC and IDLE stand at one and the same moment.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from optpolined.addresses import GuestVirtual
from optpolined.kernel import abi
from optpolined.kernel.arena import UNIT
from optpolined.kernel.poketable import ENTRY_SIZE, home
from optpolined.x86 import INT3, Register
from tests.model.listing import Listing, Op
from tests.model.rules import Handler, Kind, Violation
from tests.model.timeline import Moment
from tests.model.world import (
    ARENA,
    FUNCTIONS,
    LEARN_STUBS,
    POKE_ORDER,
    TABLE_OFFSET,
    THUNKS,
    describe,
    in_arena,
    offset_of,
)

Stale = frozenset[tuple[int, int]]
"""Old bytes, by address, that a vCPU may still fetch beside the new ones."""

FRESH: Stale = frozenset()

RESTS, IN_FUNCTION = -1, -2  # in place of an instruction's address
CALLER, SAVED = -1, -2  # on the stack: the caller's return address, the caller's scratch register


@dataclass(frozen=True, slots=True)
class CallSite:
    """A call, or a jump in its place, as the compiler meant it.

    ``returns`` are the addresses that may be pushed; the call is over at ``done``.
    """

    entry: GuestVirtual
    register: Register
    scratch: Register
    is_call: bool
    returns: frozenset[int]
    done: int
    record: int


@dataclass(frozen=True, slots=True)
class Call:
    """One call at ``site``, of the function in its register."""

    site: CallSite
    function: GuestVirtual


class Task(NamedTuple):
    """A task: where it is in its call, and every register that matters on the way.

    ``trap`` counts the looks of the int3 handler, ``scratch`` is 0 where it is the caller's,
    ``block`` the number of the block that it is in, and ``awaited`` says that a grace period waits
    for it.
    """

    at: int = RESTS
    call: int = -1
    stack: tuple[int, ...] = (CALLER,)
    equal: bool = False
    scratch: int = 0
    block: int = 0
    arrived: bool = False
    trap: int = 0
    awaited: bool = False

    @property
    def quiescent(self) -> bool:
        """Not in code that the daemon changes: a grace period does not wait for it."""
        return self.at in (RESTS, IN_FUNCTION)


AT_REST = Task()
_TRAPPED, _SEEN = 1, 2


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
                    yield task._replace(trap=_TRAPPED, equal=False), FRESH
                else:
                    yield self._execute(task, op, moment), stale

    def _fetch(self, task: Task, stale: Stale, moment: Moment) -> list[Op]:
        at = task.at
        if in_arena(at) and moment.owners[(at - ARENA) // UNIT] != task.block:
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
        if op.name in ("je", "jne"):
            taken = task.equal == (op.name == "je")
            went = task._replace(equal=task.equal and not taken)
            return self._go(went, op.value if taken else after, moment)
        if op.name in ("call", "jmp"):
            pushed = (after,) if op.name == "call" else ()
            return self._go(task._replace(stack=task.stack + pushed), op.value, moment)
        return self._go(self._compute(task, op), after, moment)

    def _compute(self, task: Task, op: Op) -> Task:
        """An instruction that does not branch: of a block, or the compare of an inline site."""
        call = self._calls[task.call]
        assert op.register is (call.site.register if op.name == "cmp" else call.site.scratch)
        match op.name:
            case "cmp":
                return task._replace(equal=op.value == call.function)
            case "push":
                return task._replace(stack=(*task.stack, task.scratch or SAVED))
            case "movabs":
                return task._replace(scratch=op.value)
            case "inc":
                self._check_record(task)
                return task
            case "pop":
                return self._pop_scratch(task)
        raise AssertionError(op)

    def _go(self, task: Task, to: int, moment: Moment) -> Task:
        """The task at ``to``, or where it comes from there through code that nobody changes."""
        call = self._calls[task.call]
        if in_arena(to):
            owner = moment.owners[(to - ARENA) // UNIT]
            block = task.block or owner
            if not block:
                raise Violation(Kind.FREED, f"{describe(to)} is entered, and free")
            return task._replace(at=to, block=block)
        task = task._replace(block=0)
        if to in LEARN_STUBS:
            self._check_register(LEARN_STUBS[GuestVirtual(to)], call)
            self._check_record(task)
            return self._arrive(self._pop_scratch(task), call)
        if to in THUNKS:
            self._check_register(THUNKS[GuestVirtual(to)], call)
            return self._arrive(task, call)
        if to in FUNCTIONS:
            if to != call.function:
                names = describe(to), describe(call.function)
                raise Violation(Kind.WRONG_TARGET, "{} instead of {}".format(*names))
            return self._arrive(task, call)
        if to == call.site.done:
            return self._end(task, call)
        return task._replace(at=to)

    def _arrive(self, task: Task, call: Call) -> Task:
        """In the function that the register names."""
        if task.arrived:
            raise Violation(Kind.NOT_ONCE, f"{describe(call.function)} is called twice")
        if task.scratch:
            raise Violation(Kind.REGISTERS, f"{call.site.scratch.name} is {task.scratch:#x}")
        depth = 2 if call.site.is_call else 1
        returns = call.site.returns if call.site.is_call else {CALLER}
        if len(task.stack) != depth or task.stack[-1] not in returns:
            raise Violation(Kind.STACK, f"{[describe(item) for item in task.stack]} in a function")
        if task.stack[-1] in (CALLER, call.site.done):
            return AT_REST
        return task._replace(at=IN_FUNCTION, arrived=True, equal=False, awaited=False)

    def _end(self, task: Task, call: Call) -> Task:
        if not task.arrived:
            raise Violation(Kind.NOT_ONCE, f"{describe(call.function)} is never called")
        if task.stack != (CALLER,):
            raise Violation(Kind.STACK, f"{[describe(item) for item in task.stack]} at the end")
        return AT_REST

    def _check_register(self, register: Register, call: Call) -> None:
        if register is not call.site.register:
            raise Violation(
                Kind.WRONG_TARGET, f"goes where {register.name} says, not {call.site.register.name}"
            )

    def _check_record(self, task: Task) -> None:
        if task.scratch != self._calls[task.call].site.record:
            raise Violation(Kind.REGISTERS, f"counts in {task.scratch:#x}, another site's record")

    def _pop_scratch(self, task: Task) -> Task:
        if task.stack[-1] != SAVED:
            raise Violation(Kind.STACK, f"{describe(task.stack[-1])} where scratch was saved")
        return task._replace(stack=task.stack[:-1], scratch=0)

    def describe(self, task: Task, stale: Stale) -> str:
        """Where the task is, for a reader of a counterexample."""
        if task.at == RESTS:
            return "at rest"
        where = describe(task.at) if task.at != IN_FUNCTION else "in its function"
        state = [f"calls {describe(self._calls[task.call].function)}: {where}"]
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

    def _emulate(self, task: Task, entry: abi.PokeEntry, moment: Moment) -> Task:
        if entry.kind == abi.SiteKind.BRANCH:
            raise Violation(Kind.UNHANDLED, f"0xCC at {describe(task.at)}, an inline branch")
        if entry.kind == abi.SiteKind.CALL and self._handler.pushes:
            task = task._replace(stack=(*task.stack, entry.site + entry.length))
        return self._go(task, entry.slow_path, moment)


def _find(image: bytes, site: int) -> abi.PokeEntry | None:
    """The entry of ``site``, as optp_poke_find() in int3.c searches for it."""
    place = home(GuestVirtual(site), POKE_ORDER)
    for _ in range(1 << POKE_ORDER):
        offset = TABLE_OFFSET + place * ENTRY_SIZE
        entry = abi.PokeEntry.from_buffer_copy(image, offset)
        if entry.site == site:
            return entry
        if not entry.site:
            return None
        place = (place + 1) % (1 << POKE_ORDER)
    return None
