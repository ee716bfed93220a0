"""What becomes of a request, which the reconcile loop takes between two epochs."""

from dataclasses import asdict

from optpolined.qemu.errors import QemuError
from optpolined.service.governor import Governor
from optpolined.service.lending import Lending
from optpolined.service.naming import NameRefusedError
from optpolined.service.static_calls import StaticCallError, StaticCalls
from optpolined.telemetry.requests import (
    Answer,
    Ban,
    ListSites,
    ListStaticCalls,
    Pin,
    ReleaseStub,
    Request,
    SetStaticCall,
    TakeStub,
    Unban,
    Unpin,
)
from optpolined.telemetry.status import Phase

__all__ = ("answer",)

_ROWS_MAX = 1000


def answer(
    request: Request,
    *,
    lending: Lending,
    static_calls: StaticCalls,
    governor: Governor,
    pause: Phase | None,
) -> Answer:
    """Do what was asked.

    :param pause: Why nothing may be changed now, if so.
    :raise KernelError: the guest is not what it was.
    """
    try:
        match request:
            case ReleaseStub():
                return lending.release()
            case TakeStub():
                return lending.take()
            case ListStaticCalls():
                return _list(static_calls, pause)
            case SetStaticCall():
                return _set(request, static_calls, pause)
            case ListSites() | Pin() | Unpin() | Ban() | Unban():
                return _govern(request, governor)
    except QemuError as error:
        return Answer(outcome="failed", says=str(error))


def _govern(request: ListSites | Pin | Unpin | Ban | Unban, governor: Governor) -> Answer:
    """Nothing is touched now: the next epoch makes it so, as soon as something may be changed."""
    if isinstance(request, ListSites):
        rows = governor.rows(request.pattern)
        more = f"; {_ROWS_MAX} shown: name a pattern" if len(rows) > _ROWS_MAX else ""
        says = f"{len(rows)} sites{more}"
        return Answer(outcome="done", says=says, rows=tuple(rows[:_ROWS_MAX]))
    try:
        return Answer(outcome="done", says=governor.change(request))
    except NameRefusedError as error:
        return Answer(outcome="refused", says=str(error))


def _list(static_calls: StaticCalls, pause: Phase | None) -> Answer:
    if pause is Phase.MIGRATING:  # even to read may take stops
        return _not_now(pause)
    try:
        rows = tuple(asdict(key) for key in static_calls.list())
    except StaticCallError as error:
        return Answer(outcome="failed", says=str(error))
    return Answer(outcome="done", says=f"{len(rows)} static calls", rows=rows)


def _not_now(pause: Phase) -> Answer:
    return Answer(outcome="refused", says=f"not now: the phase is {pause.value!r}; ask again")


def _set(request: SetStaticCall, static_calls: StaticCalls, pause: Phase | None) -> Answer:
    if pause is not None:
        return _not_now(pause)
    try:
        changed = static_calls.set(request.key, request.function)
    except StaticCallError as error:
        return Answer(outcome="refused", says=str(error))
    goes = request.function or "nothing"
    return Answer(outcome="done", says=f"{request.key} goes to {goes}: {changed} places changed")
