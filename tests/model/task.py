"""A task that calls, and what it calls: what each step of it depends on, and nothing else."""

from dataclasses import dataclass
from typing import NamedTuple

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Key
from optpolined.x86 import Register
from tests.model.world import CALLER, saved

RESTS, IN_FUNCTION = -1, -2  # in place of an instruction's address


@dataclass(frozen=True, slots=True)
class CallSite:
    """A call, or a jump in its place, as the compiler meant it.

    ``returns`` are the addresses that may be pushed; the call is over at ``done``.  A static call
    has no ``register``.  ``key_table`` is where keys are noted, if there is a ``key``.
    """

    entry: GuestVirtual
    register: Register | None
    is_call: bool
    returns: frozenset[int]
    done: int
    record: int = 0
    key: Key | None = None
    key_table: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One call at ``site``, of the function in its register; ``None``: of what its key names.

    ``key`` is what the key's register holds.
    """

    site: CallSite
    function: GuestVirtual | None = None
    key: int = 0

    def held(self, register: Register) -> int:
        """What a register holds at the site."""
        if register is self.site.register:
            assert self.function is not None
            return self.function
        is_key = self.site.key is not None and register is self.site.key.register
        return self.key if is_key else saved(register)


class Task(NamedTuple):
    """A task: where it is in its call, and every register that matters on the way.

    ``changed`` are the registers that hold something else than at the site; ``below`` is kept for
    the next instruction alone.  ``trap`` counts the looks of the int3 handler, ``block`` is the
    number of the block that it is in, and ``awaited`` says that a grace period waits for it.
    """

    at: int = RESTS
    call: int = -1
    stack: tuple[int, ...] = (CALLER,)
    equal: bool = False
    below: bool = False
    changed: tuple[tuple[Register, int], ...] = ()
    block: int = 0
    arrived: bool = False
    trap: int = 0
    awaited: bool = False

    @property
    def quiescent(self) -> bool:
        """Not in code that the daemon changes: a grace period does not wait for it."""
        return self.at in (RESTS, IN_FUNCTION)

    def read(self, call: Call, register: Register) -> int:
        """What a register holds now."""
        return dict(self.changed).get(register, call.held(register))

    def write(self, call: Call, register: Register, value: int) -> "Task":
        """The task with another value in a register."""
        others = dict(self.changed)
        others.pop(register, None)
        if value != call.held(register):
            others[register] = value
        return self._replace(changed=tuple(sorted(others.items())))


AT_REST = Task()
