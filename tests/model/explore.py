"""Every state that vCPUs, tasks and daemon can be in, breadth first.

A state is a moment of the daemon's timeline, a task and its vCPU's stale bytes for each vCPU, and
the tasks that sleep.  vCPUs are alike, and so are sleepers: both are kept sorted, so states that
differ in names alone are one.  What a task does next depends on itself, on its vCPU's stale bytes
and on the moment, so it is worked out once for each of these.
"""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

from tests.model.cpu import FRESH, Cpu, Stale
from tests.model.machine import Act
from tests.model.rules import Kind, Rules, Violation
from tests.model.task import AT_REST, RESTS, Task
from tests.model.timeline import Edge, Timeline

Slot = int
"""The number of a task together with the stale bytes of the vCPU that runs it."""

State = tuple[int, tuple[Slot, ...], tuple[Slot, ...]]
"""The moment, the vCPUs, the sleepers."""

_NEVER = -1


@dataclass(frozen=True, slots=True)
class Crew:
    """How many vCPUs there are, each with a task, and how many more tasks wait for one."""

    vcpus: int = 2
    sleepers: int = 1


class Explorer:
    """All interleavings of what the daemon does with what ``crew`` does meanwhile."""

    def __init__(self, timeline: Timeline, cpu: Cpu, rules: Rules, crew: Crew) -> None:
        self._timeline = timeline
        self._moments = timeline.moments
        self._cpu = cpu
        self._rules = rules
        self._crew = crew
        self._slots: list[tuple[Task, Stale]] = []
        self._number: dict[tuple[Task, Stale], Slot] = {}
        self._parked: list[Slot] = []
        self._steps: list[dict[Slot, tuple[Slot, ...]]] = [{} for _ in self._moments]
        self._moved: dict[tuple[int, int, Slot], Slot] = {}
        self._came_from: dict[State, State | None] = {}
        # A write in a stop leaves no vCPU with stale bytes.
        self._unseen = {Act.BOOKS, Act.NAMES, Act.GRACE_ENDS, *(() if rules.live else (Act.WRITE,))}

    def run(self) -> int:
        """Visit every state; answer how many there are.

        :raise Violation: a property does not hold in one of them.
        """
        rest = self._slot(AT_REST, FRESH)
        start = (self._timeline.start, (rest,) * self._crew.vcpus, (rest,) * self._crew.sleepers)
        came_from = self._came_from
        came_from[start] = None
        queue = deque([start])
        while queue:
            state = queue.popleft()
            try:
                for after in self._after(state):
                    if after not in came_from:
                        came_from[after] = state
                        queue.append(after)
            except Violation as violation:
                raise self._traced(violation, state) from violation
        self._check_that_calls_end()
        return len(came_from)

    def _traced(self, violation: Violation, state: State) -> Violation:
        """The violation, with what happened up to ``state``."""
        lines = [f"then {self._describe(state)}"]
        while (before := self._came_from[state]) is not None:
            lines.append(self._difference(before, state))
            state = before
        return Violation(violation.kind, violation.text, lines[::-1])

    def _after(self, state: State) -> Iterator[State]:
        if not self._moments[state[0]].held:
            yield from self._after_vcpus(*state)
        yield from self._after_daemon(*state)

    def _after_vcpus(
        self, number: int, running: tuple[Slot, ...], asleep: tuple[Slot, ...]
    ) -> Iterator[State]:
        """One vCPU executes an instruction, or switches to a task that sleeps."""
        known = self._steps[number]
        for i, slot in enumerate(running):
            if i and running[i - 1] == slot:
                continue  # a vCPU in the same state has just been looked at
            others = running[:i] + running[i + 1 :]
            for stepped in known.get(slot) or self._step(number, slot):
                yield number, tuple(sorted((*others, stepped))), asleep
            parked = self._parked[slot]
            if parked == _NEVER:
                continue
            for j, sleeper in enumerate(asleep):
                if sleeper != slot:
                    left = (*asleep[:j], *asleep[j + 1 :], parked)
                    yield number, tuple(sorted((*others, sleeper))), tuple(sorted(left))

    def _after_daemon(
        self, number: int, running: tuple[Slot, ...], asleep: tuple[Slot, ...]
    ) -> Iterator[State]:
        """The daemon goes on, or dies."""
        for place, edge in enumerate(self._moments[number].edges):
            if edge.act is Act.GRACE_ENDS and self._is_awaited((*running, *asleep)):
                continue
            if edge.act in self._unseen:
                yield edge.to, running, asleep
                continue
            moved = [self._move(number, place, edge, slot, runs=True) for slot in running]
            still = [self._move(number, place, edge, slot, runs=False) for slot in asleep]
            yield edge.to, tuple(sorted(moved)), tuple(sorted(still))

    def _step(self, number: int, slot: Slot) -> tuple[Slot, ...]:
        steps = self._cpu.steps(*self._slots[slot], self._moments[number])
        slots = tuple({self._slot(*after) for after in steps})
        self._steps[number][slot] = slots
        return slots

    def _move(self, number: int, place: int, edge: Edge, slot: Slot, *, runs: bool) -> Slot:
        """What an act of the daemon makes of a running task and its vCPU, or of a sleeper."""
        key = (2 * number + runs, place, slot)
        if key not in self._moved:
            task, stale = self._slots[slot]
            if edge.act is Act.SYNC:
                stale = FRESH
            elif edge.act is Act.DIES:
                task = task._replace(awaited=False)
            elif edge.act is Act.GRACE_BEGINS:
                waits = (
                    self._rules.grace_waits_for_running
                    if runs
                    else self._rules.grace_waits_for_sleeping
                )
                task = task._replace(awaited=waits and not task.quiescent)
            elif runs and not task.trap:  # the handler's own end serialises
                now = self._moments[edge.to]
                stale = frozenset(
                    (at, old) for at, old in stale | set(edge.stale) if now.byte(at) != old
                )
            self._moved[key] = self._slot(task, stale)
        return self._moved[key]

    def _is_awaited(self, slots: tuple[Slot, ...]) -> bool:
        return any(self._slots[slot][0].awaited for slot in slots)

    def _slot(self, task: Task, stale: Stale) -> Slot:
        found = self._number.get((task, stale))
        if found is not None:
            return found
        slot = len(self._slots)
        self._number[task, stale] = slot
        self._slots.append((task, stale))
        self._parked.append(_NEVER)
        if not task.trap:
            self._parked[slot] = slot if stale == FRESH else self._slot(task, FRESH)
        return slot

    def _check_that_calls_end(self) -> None:
        """A daemon that has gone, at any moment, keeps no call from its end."""
        for number, steps in enumerate(self._steps):
            ended = {slot for slot in steps if self._slots[slot][0].at == RESTS}
            left = dict(steps)
            while left:
                now = [
                    slot for slot, after in left.items() if slot in ended or ended.issuperset(after)
                ]
                if not now:
                    self._report_endless(number, set(left))
                ended.update(now)
                for slot in now:
                    del left[slot]

    def _report_endless(self, number: int, slots: set[Slot]) -> None:
        violation = Violation(Kind.ENDLESS, "whatever the others do")
        for state in self._came_from:
            if state[0] == number and slots.intersection(state[1]):
                raise self._traced(violation, state)

    def _difference(self, before: State, after: State) -> str:
        if before[0] != after[0]:
            edge = next(edge for edge in self._moments[before[0]].edges if edge.to == after[0])
            return f"daemon  {edge.text}"
        gone = Counter(before[1]) - Counter(after[1])
        came = Counter(after[1]) - Counter(before[1])
        names = [self._cpu.describe(*self._slots[slot]) for slot in (*gone, *came)]
        how = "steps" if before[2] == after[2] else "switches tasks"
        return f"vCPU    {how}: {' -> '.join(names)}"

    def _describe(self, state: State) -> str:
        running, asleep = (
            "; ".join(self._cpu.describe(*self._slots[slot]) for slot in slots)
            for slots in state[1:]
        )
        return f"running: {running}; asleep: {asleep}"
