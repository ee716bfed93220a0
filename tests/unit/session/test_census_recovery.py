"""A census that a dead daemon left running is ended before anything else is done to the guest."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import ModuleGoneError, StillInUseError
from optpolined.kernel.module.abi import THUNK_HEAD, RequestOp
from optpolined.patching.static_calls import StaticCalls
from optpolined.patching.thunk_heads import HeadState, ThunkHeads
from optpolined.qemu.errors import ResumedError
from optpolined.session.access import GuestAccess
from optpolined.session.attach import attach
from optpolined.session.recover_only import Recovered, recover
from optpolined.session.session import Session
from optpolined.session.tally import Tally
from optpolined.x86 import Register
from tests.unit.session.attached_guest import AttachedGuest

FOREIGN = b"\x0f\xae\xe8\xff\xe0"


class CountedGuest(AttachedGuest):
    """A guest whose daemon died during a census; it has one chunk of slots."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.header = replace(
            self.header, nr_census_chunks=1, census_chunk_slots=16, census_other=0x8800
        )
        self.write(self.header.census_chunks, (0x8900).to_bytes(8, "little"))

    def access(self, tally: Tally | None = None) -> GuestAccess:
        return GuestAccess(self.link(), self.settings(), time.monotonic, tally or Tally())

    def leave_armed(self, count: int = 15) -> None:
        """Leave the module held, and the first ``count`` thunks armed."""
        heads = self.access().heads
        originals = {thunk: self.space.read(thunk, THUNK_HEAD) for thunk in self.thunks}
        assert heads.arm()
        for thunk in self.thunks[count:]:
            self.write(thunk, originals[thunk])
        self._set(held=1)
        self.changed.clear()

    @property
    def thunks(self) -> list[GuestVirtual]:
        return sorted(self.header.thunk.values())

    def states(self) -> dict[Register, HeadState]:
        return self.access().heads.states()

    def are_original(self) -> bool:
        return set(self.states().values()) == {HeadState.ORIGINAL}

    def attach(self, work: Callable[[Session], None] = lambda _: None) -> Tally:
        tally = Tally()
        with attach(
            self.link(), self.settings(), time.monotonic, force=False, tally=tally
        ) as session:
            work(session)
        return tally

    def recover(self) -> Recovered:
        return recover(self.link(), self.settings())


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> CountedGuest:
    return CountedGuest(monkeypatch)


@pytest.mark.parametrize("armed", [1, 7, 15])
def test_an_attach_ends_the_census_first(
    guest: CountedGuest, armed: int, caplog: pytest.LogCaptureFixture
) -> None:
    guest.leave_patched()
    guest.leave_armed(armed)
    first = {guest.space.translate(guest.header.thunk[Register.RAX])}

    def work(session: Session) -> None:
        assert guest.are_original()
        assert session.census.refusal is None

    tally = guest.attach(work)
    assert guest.changed[0] in first
    assert tally.recoveries == 2  # the census, and one site
    said = [line for line in caplog.messages if "census" in line]
    assert said == [f"ended the census of a daemon that died: {armed} thunks put back"]
    assert guest.text == guest.built
    assert not guest.is_held


@pytest.mark.parametrize("armed", [1, 7, 15])
def test_recover_only_ends_the_census_and_releases_the_module(
    guest: CountedGuest, armed: int
) -> None:
    guest.leave_armed(armed)
    assert str(guest.recover()) == f"{armed} thunks restored; optpoline.ko released"
    assert guest.are_original()
    assert not guest.is_held
    assert str(guest.recover()) == "nothing to restore; optpoline.ko was not held"


def test_recover_only_restores_thunks_and_sites(guest: CountedGuest) -> None:
    guest.leave_patched()
    guest.leave_armed()
    assert str(guest.recover()) == "15 thunks restored, 1 sites restored; optpoline.ko released"
    assert guest.are_original()
    assert guest.text == guest.built


def test_a_foreign_head_is_named_left_alone_and_refuses_the_census(
    guest: CountedGuest, caplog: pytest.LogCaptureFixture
) -> None:
    guest.leave_armed()
    guest.write(guest.header.thunk[Register.RDI], FOREIGN)

    def work(session: Session) -> None:
        assert session.census.refusal == (
            "the thunk of rdi holds 0f ae e8 ff e0, which another program wrote"
        )
        assert not session.census.start()
        assert session.census.covered == frozenset()

    guest.attach(work)
    assert "the thunk of rdi holds bytes that another program wrote: left alone" in caplog.messages
    states = guest.states()
    assert states.pop(Register.RDI) is HeadState.FOREIGN
    assert set(states.values()) == {HeadState.ORIGINAL}
    assert not guest.is_held


def test_a_probe_on_an_armed_head_keeps_the_module(
    guest: CountedGuest, caplog: pytest.LogCaptureFixture
) -> None:
    guest.leave_armed()
    guest.write(guest.header.thunk[Register.RDI], b"\xcc")
    said = str(guest.recover())
    assert said == (
        "14 thunks restored; optpoline.ko stays held: foreign bytes stand at the thunk of rdi"
    )
    assert guest.is_held
    with pytest.raises(StillInUseError, match="rdi"):
        guest.access().release_module()
    guest.attach()
    assert guest.is_held
    assert caplog.messages[-1].startswith("the thunk of rdi leads to optpoline.ko; optpoline.ko")
    assert RequestOp.RELEASE not in guest.served


def test_a_session_that_ends_during_a_census_ends_it_too(guest: CountedGuest) -> None:
    def work(session: Session) -> None:
        assert session.census.start()
        assert not guest.are_original()

    guest.attach(work)
    assert guest.are_original()
    assert not guest.is_held


def resumed(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next stops that are to disarm be ended by something else."""
    disarm = ThunkHeads.disarm
    left = [times]

    def fail(self: ThunkHeads) -> bool:
        if left[0]:
            left[0] -= 1
            raise ResumedError
        return disarm(self)

    monkeypatch.setattr(ThunkHeads, "disarm", fail)


def test_the_end_of_a_session_tries_again_where_the_guest_is_resumed(
    guest: CountedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(session: Session) -> None:
        assert session.census.start()
        resumed(2, monkeypatch)

    guest.attach(work)
    assert guest.are_original()
    assert not guest.is_held


def test_a_census_that_cannot_be_ended_keeps_the_module(
    guest: CountedGuest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def work(session: Session) -> None:
        assert session.census.start()
        resumed(3, monkeypatch)

    guest.attach(work)
    assert guest.is_held
    assert any("the census goes on" in line for line in caplog.messages)
    assert guest.recover().is_complete
    assert guest.are_original()


def test_qemu_that_fails_while_a_census_is_ended_lets_the_next_daemon_do_it(
    guest: CountedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.leave_armed()
    resumed(1, monkeypatch)
    with pytest.raises(ResumedError):
        guest.attach()
    assert guest.is_held
    guest.attach()
    assert guest.are_original()


def test_an_attach_that_fails_later_has_ended_the_census(
    guest: CountedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: object) -> None:
        raise ModuleGoneError

    guest.leave_armed()
    monkeypatch.setattr(StaticCalls, "settle", gone)
    with pytest.raises(ModuleGoneError):
        guest.attach()
    assert guest.are_original()
