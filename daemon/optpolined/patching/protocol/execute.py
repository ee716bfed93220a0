"""Walk a plan over a transport."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from optpolined.api.refusal import Refusal
from optpolined.patching.protocol.errors import ChangeError
from optpolined.patching.protocol.standing import foreign_reason
from optpolined.patching.protocol.steps import (
    Change,
    Plan,
    Protocol,
    Step,
    StepPhase,
    Sync,
    Write,
    steps,
)
from optpolined.patching.protocol.transport import (
    Differs,
    Transport,
    TransportKind,
    Unmapped,
    Written,
)

__all__ = ("GivenUp", "GracePeriod", "PlanResult", "execute", "walk")

GracePeriod = Callable[[], None]
"""Returns when a grace period of the guest has begun and ended."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A change that was given up because something else stood at its address."""

    change: int
    phase: StepPhase
    write: Write
    outcome: Differs | Unmapped

    @property
    def reason(self) -> Refusal:
        """Why, if the address is one of a site."""
        if isinstance(self.outcome, Unmapped):
            return Refusal.UNMAPPED
        return foreign_reason(self.outcome.found)


@dataclass(slots=True)
class PlanResult:
    """What became of the changes, by number; those that are in neither list were not tried."""

    done: list[int] = field(default_factory=list)
    refused: list[GivenUp] = field(default_factory=list)


def execute(changes: Sequence[Change], protocol: Protocol, transport: Transport) -> PlanResult:
    """Make ``changes``; a change whose site is not as expected is left where it stands.

    A refusal in PREPARE gives up all changes before any site was touched, because every breakpoint
    of the batch depends on the tables that another program writes to.  One in BREAK leaves that
    site untouched, and its entry is disarmed with the others.  One in TAIL, HEAD or WHOLE means
    that another program wrote over our bytes: the site is left to it, and its entry stays armed,
    because a 0xCC of ours may have been copied.

    :raise ChangeError: the protocol cannot make one of them, or not over this transport.
    :raise QemuError: the transport failed; the sites must then be read again before anything else
        is done to them (recovery).
    """
    return _walk(steps(changes, protocol), transport, None)


def walk(plan: Plan, transport: Transport, grace: GracePeriod) -> PlanResult:
    """Make the changes of a plan, as :func:`execute` does; it may hold grace periods.

    A change that is given up stays where its last write left it, which every plan makes a form that
    means what the site has always meant.  No grace period is waited for once all changes are given
    up.

    :raise ChangeError: as for :func:`execute`.
    :raise QemuError: as for :func:`execute`, or the grace period failed.
    """
    return _walk(plan, transport, grace)


def _walk(plan: Plan, transport: Transport, grace: GracePeriod | None) -> PlanResult:
    numbers = sorted(
        {item.change for step in plan if isinstance(step, Step) for item in step.writes}
    )
    _check(plan, transport)
    result = PlanResult()
    given_up: dict[int, StepPhase] = {}
    for step in plan:
        if not isinstance(step, Step):
            if len(given_up) == len(numbers):
                continue
            if isinstance(step, Sync):
                transport.sync()
            else:
                assert grace is not None, "only the steps of a protocol are walked without one"
                grace()
            continue
        live = [item for item in step.writes if _goes_on(given_up.get(item.change), step)]
        outcomes = transport.write([item.write for item in live]) if live else ()
        for item, outcome in zip(live, outcomes, strict=True):
            if not isinstance(outcome, Written) and item.change not in given_up:
                given_up[item.change] = step.phase
                result.refused.append(GivenUp(item.change, step.phase, item.write, outcome))
        if step.phase is StepPhase.PREPARE and StepPhase.PREPARE in given_up.values():
            given_up = dict.fromkeys(numbers, StepPhase.PREPARE) | given_up
        if step.phase is StepPhase.DISARM:
            given_up = dict.fromkeys(given_up, StepPhase.DISARM)
    result.done = [number for number in numbers if number not in given_up]
    return result


def _check(plan: Plan, transport: Transport) -> None:
    if transport.kind is not TransportKind.STOPPED and any(
        isinstance(step, Step) and step.phase is StepPhase.WHOLE for step in plan
    ):
        raise ChangeError("only a transport that stops the guest may write a whole instruction")


def _goes_on(given_up_in: StepPhase | None, step: Step) -> bool:
    if step.phase is StepPhase.DISARM:
        return given_up_in in (None, StepPhase.PREPARE, StepPhase.BREAK, StepPhase.UNREACHED)
    return given_up_in is None
