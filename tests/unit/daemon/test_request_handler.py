"""What becomes of requests for static calls."""

import pytest

from optpolined.api.requests import Answer, ListStaticCalls, Request, SetStaticCall
from optpolined.api.sites import StaticCallRow
from optpolined.api.status import DaemonPhase
from optpolined.control.operator import Operator
from optpolined.daemon.request_handler import RequestHandler
from optpolined.patching.static_calls import StaticCalls
from optpolined.qemu.errors import StubClosedError
from optpolined.session.stub_handover import StubHandover
from optpolined.views.site_table import SiteTable
from tests.unit.patching.static_world import NUMBER, World

SET_TWO = SetStaticCall(key="number", function="two")


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def calls(world: World) -> StaticCalls:
    return world.static_calls()


def ask(calls: StaticCalls, request: Request, pause: DaemonPhase | None = None) -> Answer:
    """No request for static calls touches the stub's lending, or the rules."""
    clerk = RequestHandler(
        StubHandover.__new__(StubHandover),
        calls,
        Operator.__new__(Operator),
        SiteTable.__new__(SiteTable),
    )
    return clerk.answer(request, pause)


def test_a_table_has_a_row_for_each_key(calls: StaticCalls) -> None:
    said = ask(calls, ListStaticCalls())
    assert (said.outcome, said.says) == ("done", "2 static calls")
    assert said.static_calls[1] == StaticCallRow("number", "mine", "one [mine]", "one [mine]", 2)


def test_a_key_is_set_and_set_to_nothing(calls: StaticCalls) -> None:
    said = ask(calls, SET_TWO)
    assert said == Answer(outcome="done", says="number goes to two: 3 places changed")
    assert ask(calls, ListStaticCalls()).static_calls[1].target == "two [mine]"
    said = ask(calls, SetStaticCall(key="number"))
    assert said == Answer(outcome="done", says="number goes to nothing: 3 places changed")


@pytest.mark.parametrize("pause", [DaemonPhase.PAUSED, DaemonPhase.RELEASED, DaemonPhase.MIGRATING])
def test_nothing_is_set_while_nothing_may_be_changed(
    world: World, calls: StaticCalls, pause: DaemonPhase
) -> None:
    said = ask(calls, SET_TWO, pause)
    assert said.outcome == "refused"
    assert pause.value in said.says
    assert world.writes == 0
    expected = "refused" if pause is DaemonPhase.MIGRATING else "done"
    assert ask(calls, ListStaticCalls(), pause).outcome == expected


def test_what_cannot_be_is_refused(world: World, calls: StaticCalls) -> None:
    said = ask(calls, SetStaticCall(key="nothing", function="two"))
    assert said.outcome == "refused"
    assert "known: event, number" in said.says
    assert world.writes == 0


def test_what_others_did_to_a_place_is_told(world: World, calls: StaticCalls) -> None:
    world.guest.kernel.write(NUMBER, b"\xcc")
    assert ask(calls, SET_TWO).outcome == "refused"
    said = ask(calls, ListStaticCalls())
    assert said.outcome == "failed"
    assert "holds foreign bytes" in said.says


def test_a_failure_of_qemu_is_told(world: World, calls: StaticCalls) -> None:
    world.dies_at = 2
    assert ask(calls, SET_TWO) == Answer(outcome="failed", says=str(StubClosedError("gone")))
