"""An attach that fails leaves the guest as it was, and a guarded guest is never written to."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from optpolined.api.refusal import Refusal
from optpolined.codegen.forms import LEARNING
from optpolined.kernel.errors import GuardedError, ModuleGoneError
from optpolined.kernel.module.abi import RequestOp
from optpolined.kernel.module.counters import Counters
from optpolined.patching.static_calls import StaticCalls
from optpolined.qemu.errors import GuardianError, ResumedError
from optpolined.qemu.guardian import Guardian
from optpolined.qemu.stopnote import StopNote
from optpolined.session.attach import attach
from optpolined.session.errors import AttachRefusedError, NothingToGainError
from optpolined.session.recover_only import recover
from optpolined.session.session import Session
from optpolined.session.survey import Inventory
from optpolined.session.tally import Tally
from tests.unit.session.attached_guest import LOCKED_DOWN, SITE, AttachedGuest


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> AttachedGuest:
    return AttachedGuest(monkeypatch)


def attach_to(guest: AttachedGuest, work: Callable[[Session], None] = lambda _: None) -> None:
    with attach(guest.link(), guest.settings(), time.monotonic, force=False) as session:
        assert list(session.survey.inventory.eligible) == [SITE]
        work(session)


def test_the_end_of_the_block_puts_all_back_and_releases_the_module(guest: AttachedGuest) -> None:
    def work(session: Session) -> None:
        assert guest.is_held
        session.apply({SITE: LEARNING})
        assert guest.text != guest.built

    attach_to(guest, work)
    assert guest.text == guest.built
    assert not guest.is_held


def test_what_a_dead_daemon_left_is_put_back_before_the_survey(guest: AttachedGuest) -> None:
    guest.leave_patched()
    attach_to(guest, lambda _: None)
    assert guest.text == guest.built
    assert not guest.is_held


@pytest.mark.parametrize("how", [attach_to, lambda guest: recover(guest.link(), guest.settings())])
def test_a_guest_in_lockdown_is_refused_before_anything_is_written(
    guest: AttachedGuest, how: Callable[[AttachedGuest], object]
) -> None:
    guest.leave_patched()
    guest.write(LOCKED_DOWN, b"\1")
    with pytest.raises((GuardedError, AttachRefusedError), match="lockdown"):
        how(guest)
    assert guest.changed == []
    assert guest.served == [RequestOp.MODULES]
    assert guest.text != guest.built


STEPS = (
    (Counters, "from_header"),
    (Counters, "int3"),
    (Counters, "snapshot"),
    (StaticCalls, "settle"),
)


@pytest.mark.parametrize(("owner", "step"), STEPS)
@pytest.mark.parametrize("error", [ModuleGoneError, ResumedError, RuntimeError])
def test_a_step_that_fails_after_the_hold_releases_the_module(
    guest: AttachedGuest,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    step: str,
    error: type[Exception],
) -> None:
    def fail(*_: object) -> None:
        assert guest.is_held
        raise error

    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(error):
        attach_to(guest)
    assert guest.served == [
        RequestOp.MODULES,
        RequestOp.HOLD,
        *guest.served[2:-2],
        RequestOp.GRACE,
        RequestOp.RELEASE,
    ]
    assert not guest.is_held


def test_a_step_that_fails_leaves_a_module_held_that_a_dead_daemon_held(
    guest: AttachedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.leave_patched()
    monkeypatch.setattr(StaticCalls, "settle", _gone)
    with pytest.raises(ModuleGoneError):
        attach_to(guest)
    assert guest.is_held
    assert guest.text == guest.built


def test_without_a_site_the_module_is_not_even_held(
    guest: AttachedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inventory, "found", 0)
    with pytest.raises(NothingToGainError):
        attach_to(guest)
    assert guest.served == [RequestOp.MODULES]


def test_work_that_fails_has_its_sites_put_back(guest: AttachedGuest) -> None:
    def work(session: Session) -> None:
        session.apply({SITE: LEARNING})
        raise RuntimeError

    with pytest.raises(RuntimeError):
        attach_to(guest, work)
    assert guest.text == guest.built
    assert not guest.is_held


@pytest.mark.parametrize("error", [ModuleGoneError, ResumedError])
def test_after_an_error_of_the_guest_or_of_qemu_nothing_is_put_back(
    guest: AttachedGuest, error: type[Exception]
) -> None:
    def work(session: Session) -> None:
        session.apply({SITE: LEARNING})
        raise error

    with pytest.raises(error):
        attach_to(guest, work)
    assert guest.text != guest.built
    assert guest.is_held


def test_a_session_that_is_left_stays_patched_and_recover_only_puts_it_back(
    guest: AttachedGuest,
) -> None:
    def work(session: Session) -> None:
        session.apply({SITE: LEARNING})
        session.leave()

    attach_to(guest, work)
    assert guest.text != guest.built
    recovered = recover(guest.link(), guest.settings())
    assert str(recovered) == "1 sites restored; optpoline.ko released"
    assert guest.text == guest.built


def test_a_guardian_that_is_killed_is_replaced_within_an_epoch(
    guest: AttachedGuest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    note = StopNote.create(tmp_path / "note", 1)
    tally = Tally()
    with Guardian.start(tmp_path / "qmp", note) as guardian:
        guest.guardian = guardian
        with attach(
            guest.link(), guest.settings(), time.monotonic, force=False, tally=tally
        ) as session:
            for work in (session.look, lambda: session.apply({SITE: LEARNING})):
                dead = guardian.pid
                os.kill(dead, signal.SIGKILL)
                os.waitid(os.P_PID, dead, os.WEXITED | os.WNOWAIT)
                work()
                assert guardian.is_alive()
                assert guardian.pid != dead
            assert tally.guardian_restarts == 2
            assert guest.text != guest.built
    said = [line for line in caplog.messages if "guardian" in line]
    assert len(said) == 2


class UnstartableGuardian:
    """A guardian that lives, or that died where another one cannot be started."""

    is_dead = False

    def restart_if_dead(self) -> bool:
        if self.is_dead:
            raise GuardianError("the guardian cannot be started: no processes")
        return False


def test_without_a_guardian_nothing_is_patched_and_all_is_put_back(
    guest: AttachedGuest, caplog: pytest.LogCaptureFixture
) -> None:
    guest.guardian = guardian = UnstartableGuardian()
    with attach(guest.link(), guest.settings(), time.monotonic, force=False) as session:
        guardian.is_dead = True
        session.look()
        assert session.apply({SITE: LEARNING}).sites == {SITE: Refusal.HELD_UP}
        assert guest.text == guest.built
        guardian.is_dead = False
        assert session.apply({SITE: LEARNING}).done == 1
        guardian.is_dead = True
    assert guest.text == guest.built
    assert not guest.is_held
    assert caplog.messages[0] == (
        "the guardian cannot be started: no processes: the guest is not patched until a guardian "
        "watches again"
    )


def _gone(*_: object) -> None:
    raise ModuleGoneError
