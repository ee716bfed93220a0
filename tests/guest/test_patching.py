"""Sites of a loaded guest are patched, and the guest itself checks its results."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from guest.image.boot import Guest
from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.config import Settings
from optpolined.patching.protocol.steps import Protocol, Step, StepPhase, Write, steps
from optpolined.patching.protocol.transport import UNMAPPED, WRITTEN, Outcome, Transport
from optpolined.session.attach import attach
from optpolined.session.link import connect
from optpolined.session.session import Session
from tests.guest.harness import (
    bench_calls,
    config_of,
    end_load,
    load_state,
    open_session,
    site_in,
    sites_called,
    start_load,
    targets_of,
    wait_bench,
    wait_until,
)

ROUNDS = 100
"""Of promote, retarget and revert, by each of the two protocols."""

BENCH = ("call_1", "call_2_random", "call_4_random", "tail_1", "tail_2_random", "tail_4_random")


@pytest.fixture
def loaded(guest: Guest) -> Iterator[Guest]:
    """The shared guest under optload and optbench, whose checks must all have been right."""
    start_load(guest)
    guest.run("echo reset >/proc/optbench; echo rate 0 >/proc/optbench")
    for name in BENCH:
        guest.run(f"echo run {name} >/proc/optbench")
    wait_bench(guest, BENCH)
    yield guest
    guest.run("echo stop >/proc/optbench")
    end_load(guest)
    assert all(errors == 0 for _, errors in bench_calls(guest).values())


class Meddler(Transport):
    """Lets another program write to a site just before our first write of a phase."""

    def __init__(self, session: Session, victim: GuestVirtual, theirs: bytes) -> None:
        self._session = session
        self._victim = victim
        self._theirs: bytes | None = theirs
        self.kind = session.transport.kind

    def write(self, writes: Sequence[Write]) -> Sequence[Outcome]:
        if self._theirs and any(write.address == self._victim for write in writes):
            ours = next(write.expect for write in writes if write.address == self._victim)
            theirs, self._theirs = self._theirs, None
            assert self._session.transport.write([Write(self._victim, ours, theirs)]) == [WRITTEN]
        return self._session.transport.write(writes)

    def sync(self) -> None:
        self._session.transport.sync()


def cold_sites(session: Session, count: int) -> list[GuestVirtual]:
    """Return sites that a guest without such hardware never reaches."""
    eligible = session.survey.inventory.eligible
    cold = [address for address, site in eligible.items() if site.function.startswith("acpi_ev_")]
    assert len(cold) >= count
    return sorted(cold)[:count]


def test_bytes_changed_behind_our_back_are_left_alone_and_the_others_patched(
    loaded: Guest,
) -> None:
    with open_session(config_of(loaded)) as session:
        sites = cold_sites(session, 5)
        victim = session.survey.inventory.eligible[sites[2]]
        theirs = b"\x0f\x1f\x44\x00\x00"[: victim.length]
        patcher = session.make_patcher(Protocol.BREAKPOINT, Meddler(session, sites[2], theirs))
        report = patcher.apply(dict.fromkeys(sites, LEARNING))
        assert report.sites == {sites[2]: "foreign_bytes"}
        assert report.done == 4
        forms = patcher.observe()
        assert forms.pop(sites[2]) is None
        assert set(forms.values()) == {LEARNING}
        assert session.transport.write([Write(victim.address, theirs, victim.original)]) == [
            WRITTEN
        ]
        patcher.apply(dict.fromkeys(sites, ORIGINAL))


def test_a_breakpoint_held_at_the_hottest_sites_does_no_harm(loaded: Guest) -> None:
    with open_session(config_of(loaded)) as session:
        hottest = sites_called(session, 5)[:5]
        before, checks = session.counters.int3_hits, load_state(loaded)["checks"]
        changes = [session.patcher.change(site, ORIGINAL, session.space) for site in hottest]
        plan = steps(changes, Protocol.BREAKPOINT)
        protocol = [step for step in plan if isinstance(step, Step)]
        held = [step for step in protocol if step.phase in (StepPhase.PREPARE, StepPhase.BREAK)]
        for step in protocol:
            written = session.transport.write([item.write for item in step.writes])
            assert written == [WRITTEN] * len(step.writes), step.phase
            if step is held[-1]:
                wait_until(
                    lambda: session.counters.int3_hits - before,
                    "a thousand calls meet a breakpoint",
                    lambda hits: hits > 1000,
                )
        wait_until(
            lambda: load_state(loaded)["checks"],
            f"the load goes on after {checks} checks",
            lambda now: now > checks,
        )


@pytest.mark.parametrize("protocol", Protocol)
def test_rounds_of_promote_retarget_and_revert(loaded: Guest, protocol: Protocol) -> None:
    with open_session(config_of(loaded)) as session:
        patcher = session.make_patcher(protocol)
        plan = {}
        for name in BENCH:
            function = f"optbench_{name}"
            site = site_in(session, function).address
            plan[site] = targets_of(session, site, int(name.split("_")[1]))
        for number in range(ROUNDS):
            last: dict[GuestVirtual, Form] = {}
            for form in (_promoted, _retargeted, _reverted):
                wanted = {site: form(targets, number) for site, targets in plan.items()}
                assert patcher.apply(wanted).done == len(plan)
                assert {site: patcher.observe()[site] for site in plan} == wanted
                last = wanted
            assert set(last.values()) == {ORIGINAL}
            session.recycle()
        after = wait_bench(loaded, BENCH)
        assert all(errors == 0 for _, errors in after.values())


def _promoted(targets: tuple[GuestVirtual, ...], _: int) -> Form:
    return Chain(targets)


def _retargeted(targets: tuple[GuestVirtual, ...], number: int) -> Form:
    turn = number % len(targets)
    return Chain(targets[turn:] + targets[:turn], counts_hits=number % 2 == 1)


def _reverted(_: tuple[GuestVirtual, ...], __: int) -> Form:
    return ORIGINAL


def test_what_is_learned_is_what_is_called(loaded: Guest) -> None:
    with open_session(config_of(loaded)) as session:
        for name in ("call_4_random", "tail_2_random"):
            count = int(name.split("_")[1])
            site = site_in(session, f"optbench_{name}").address
            names = {
                session.survey.symbols.name(target) for target in targets_of(session, site, count)
            }
            assert names == {f"optbench_target_{number} [optbench]" for number in range(count)}


def test_hits_and_misses_of_a_promoted_chain_are_counted(loaded: Guest) -> None:
    with open_session(config_of(loaded)) as session:
        site = site_in(session, "optbench_call_2_random").address
        first, second = targets_of(session, site, 2)
        session.apply({site: Chain((first,), counts_hits=True)})
        hits, calls = 0, Counter[GuestVirtual]()

        def look() -> tuple[int, int]:
            nonlocal hits
            if (gain := session.counters.count().get(site)) is not None:
                hits += gain.hits
                calls.update(gain.calls)
            return hits, calls[second]

        wait_until(look, "hits and misses are counted", lambda counted: min(counted) > 1000)
        assert first not in calls
        assert 0.8 < hits / calls[second] < 1.25
        session.apply({site: Chain((first, second))})
        # This takes in the calls that were still in the old block.
        wait_bench(loaded, ["call_2_random"], 1000)
        session.counters.count()
        wait_bench(loaded, ["call_2_random"], 1000)
        counted = session.counters.count().get(site)
        assert counted is None or not counted.calls


def test_retired_blocks_are_reused_only_after_a_grace_period(loaded: Guest) -> None:
    with open_session(config_of(loaded)) as session:
        site = site_in(session, "optbench_call_1").address
        session.apply({site: LEARNING})
        session.apply({site: ORIGINAL})
        session.patcher.observe()
        assert session.arena.usage().retired > 0

        def retired() -> int:
            session.recycle()
            return session.arena.usage().retired

        assert retired() > 0
        wait_until(retired, "the blocks may be used again", lambda left: left == 0)
        assert session.arena.usage().used == 0


def test_what_a_dead_daemon_left_is_put_back_by_the_next(loaded: Guest) -> None:
    config = config_of(loaded)
    with (
        connect(config) as link,
        attach(link, Settings(config), time.monotonic, force=False) as session,
    ):
        text = session.survey.texts
        sites = sites_called(session, 20)[:20]
        session.apply(dict.fromkeys(sites, LEARNING))
        interrupted = session.patcher.change(sites[0], ORIGINAL, session.space)
        for step in steps([interrupted], Protocol.BREAKPOINT):
            if isinstance(step, Step) and step.phase in (StepPhase.PREPARE, StepPhase.BREAK):
                session.transport.write([item.write for item in step.writes])
        session.leave()
    with open_session(config) as session:
        assert session.survey.texts == text


def test_physical_addresses_outside_ram_are_never_written(loaded: Guest) -> None:
    with open_session(config_of(loaded)) as session:
        unmapped = GuestVirtual(0xFFFFFFFF_00000000)
        assert session.transport.write([Write(unmapped, b"\0", b"\1")]) == [UNMAPPED]
