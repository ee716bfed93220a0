"""What holds whatever a guest does."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.learning.hysteresis import Hysteresis
from optpolined.learning.settings import LearningSettings
from optpolined.learning.shape import Shaper
from optpolined.learning.strategy import SiteEpoch, Snapshot

from .synthetic import SECONDS, Mix, Run, mix, replay, site, target

# Short pauses, so that a short trace goes through all states.
QUICK = LearningSettings(
    promote_epochs=2,
    learn_epochs=3,
    audit_epochs=3,
    audit_interval_epochs=4,
    reopen_epochs=2,
    reopen_share=0.5,
    quarantine_epochs=2,
    quarantine_epochs_max=16,
    calm_epochs=4,
)
COUNTS = st.one_of(st.integers(), st.integers(min_value=0, max_value=2000))
TARGETS = st.integers(min_value=0, max_value=9).map(lambda n: target(n) if n else GuestVirtual(0))
EPOCHS = st.builds(SiteEpoch, st.dictionaries(TARGETS, COUNTS, max_size=6), COUNTS, COUNTS)
SITES = st.integers(min_value=0, max_value=4).map(site)
FORMS: st.SearchStrategy[Form] = st.one_of(
    st.sampled_from([ORIGINAL, LEARNING]),
    st.builds(Chain, st.lists(TARGETS, max_size=4, unique=True).map(tuple), st.booleans()),
)
SNAPSHOTS = st.builds(
    Snapshot,
    epoch=st.integers(min_value=-2, max_value=60),
    seconds=st.one_of(st.just(SECONDS), st.floats()),
    sites=st.dictionaries(SITES, EPOCHS, max_size=5),
    installed=st.dictionaries(SITES, FORMS, max_size=5),
)
RATES = st.one_of(
    st.just(0.0), st.floats(min_value=0, max_value=60), st.floats(min_value=100, max_value=5000)
)
MIXES = st.lists(RATES, max_size=9).flatmap(
    lambda rates: st.integers(min_value=0, max_value=6).map(lambda k: mix(*rates, first=k))
)
PHASES = st.lists(st.tuples(st.integers(min_value=1, max_value=12), MIXES), min_size=1, max_size=6)


def play(plans: list[list[tuple[int, Mix]]], options: LearningSettings = QUICK) -> Run:
    """A guest whose sites go through phases of some epochs each, again and again."""

    def follow(plan: list[tuple[int, Mix]]) -> list[Mix]:
        return [rates for length, rates in plan for _ in range(length)]

    tracks = [follow(plan) for plan in plans]
    sites = {
        site(n): (lambda epoch, track=track: track[epoch % len(track)])
        for n, track in enumerate(tracks)
    }
    return Run(sites, options).epochs(80)


@settings(deadline=None)
@given(st.lists(SNAPSHOTS, max_size=30))
def test_nothing_that_a_snapshot_says_raises(snapshots: list[Snapshot]) -> None:
    strategy = Hysteresis(QUICK)
    state = strategy.initial([site(n) for n in range(4)])
    for snapshot in snapshots:
        state, decision = strategy.decide(state, snapshot)
        assert set(decision.wanted) <= {site(n) for n in range(4)}
        assert decision.states.keys() == decision.reasons.keys()
        assert all("\n" not in reason for reason in decision.reasons.values())
    assert strategy.load(strategy.dump(state)) == state


@settings(deadline=None)
@given(st.lists(SNAPSHOTS, max_size=30))
def test_no_target_is_named_that_was_not_counted_at_that_site(snapshots: list[Snapshot]) -> None:
    strategy = Hysteresis(QUICK)
    state = strategy.initial([site(n) for n in range(5)])
    counted: dict[GuestVirtual, set[GuestVirtual]] = {site(n): set() for n in range(5)}
    for epoch, snapshot in enumerate(snapshots):
        # What the strategy asked for stands there, so that its states are reached.
        answered = replace(snapshot, epoch=epoch, installed=strategy.wanted(state))
        for address, seen in answered.sites.items():
            counted[address] |= {name for name, number in seen.calls.items() if number > 0}
        state, decision = strategy.decide(state, answered)
        for address, form in decision.wanted.items():
            named = form.targets if isinstance(form, Chain) else ()
            assert set(named) <= counted[address] - {0}
            assert len(named) <= Shaper().targets_max
            assert len(set(named)) == len(named)


@settings(deadline=None, max_examples=40)
@given(st.lists(PHASES, min_size=1, max_size=2))
def test_no_target_is_named_before_it_was_counted(plans: list[list[tuple[int, Mix]]]) -> None:
    run = play(plans)
    counted: dict[GuestVirtual, set[GuestVirtual]] = {address: set() for address in run.guest.sites}
    for snapshot, decision in zip(run.snapshots, run.decisions, strict=True):
        for address, seen in snapshot.sites.items():
            counted[address] |= seen.calls.keys()
        for address, form in decision.wanted.items():
            assert not isinstance(form, Chain) or set(form.targets) <= counted[address]


@settings(deadline=None, max_examples=40)
@given(st.lists(PHASES, min_size=1, max_size=2))
def test_a_replay_decides_the_same_from_any_point_on(plans: list[list[tuple[int, Mix]]]) -> None:
    run = play(plans)
    strategy = Hysteresis(QUICK)
    state = strategy.initial(run.guest.sites)
    assert replay(strategy, state, run.snapshots) == run.decisions
    for middle in (7, 45):
        resumed = state
        for snapshot in run.snapshots[:middle]:
            resumed, _ = strategy.decide(resumed, snapshot)
        resumed = strategy.load(strategy.dump(resumed))
        assert replay(strategy, resumed, run.snapshots[middle:]) == run.decisions[middle:]


# Four targets that fill a chain, of which any may be weak, and in some phases a fifth.
NEAR = st.sampled_from([40.0, 80.0, 120.0, 160.0, 200.0, 400.0])
CROWDED = st.lists(
    st.tuples(
        st.integers(min_value=4, max_value=12),
        st.tuples(NEAR, NEAR, NEAR, NEAR, st.sampled_from([0.0, 0.0, 60.0, 120.0, 180.0, 300.0])),
    ),
    min_size=2,
    max_size=5,
).map(lambda plan: [(length, mix(*rates)) for length, rates in plan])


@settings(deadline=None, max_examples=100)
@given(st.lists(st.one_of(CROWDED, PHASES), min_size=1, max_size=2))
def test_only_a_challenger_with_the_margin_takes_a_place(
    plans: list[list[tuple[int, Mix]]],
) -> None:
    run = play(plans)
    standing: dict[GuestVirtual, Form] = {}
    believed: dict[GuestVirtual, dict[GuestVirtual, float]] = {}
    for decision in run.decisions:
        for address, form in decision.wanted.items():
            old = standing.get(address, ORIGINAL)
            standing[address] = form
            was = believed.get(address, {})
            now = dict(decision.shares.get(address, ()))
            if now:
                believed[address] = now
            if not isinstance(old, Chain) or not old.targets:
                continue
            if not isinstance(form, Chain) or not form.targets:
                continue
            gone, came = set(old.targets) - set(form.targets), set(form.targets) - set(old.targets)
            if not gone:
                continue
            # Only where no place is free, only out of an audit, and only for what beat it there.
            assert old.counts_hits
            assert len(form.targets) == max(QUICK.max_targets, len(old.targets))
            assert len(came) >= len(gone)
            # Only the sum of the hits is known: their shares are to each other as they were.
            kept = set(old.targets) - gone
            most = sum(was[name] for name in kept)
            scale = sum(now[name] for name in kept) / most if most else 0.0
            losers = sorted(was[name] * scale for name in gone)
            winners = sorted((now[name] for name in came), reverse=True)[-len(losers) :]
            for loser, winner in zip(losers, winners, strict=True):
                assert winner - loser >= QUICK.challenger_margin - 1e-6


@settings(deadline=None, max_examples=40)
@given(PHASES, st.integers(min_value=1, max_value=20))
def test_empty_epochs_demote_nobody(plan: list[tuple[int, Mix]], number: int) -> None:
    run = play([plan])
    state, first = run.state, run.guest.epoch + 1
    promoted = {a for a, s in run.strategy.site_statuses(state).items() if s.state == "promoted"}
    for epoch in range(first, first + number):
        empty = Snapshot(epoch, SECONDS, {}, dict(run.guest.installed))
        state, decision = run.strategy.decide(state, empty)
        assert not promoted & decision.wanted.keys()


@settings(deadline=None, max_examples=40)
@given(st.lists(PHASES, min_size=1, max_size=2))
def test_wanted_forms_are_what_the_decisions_said(plans: list[list[tuple[int, Mix]]]) -> None:
    run = play(plans)
    said = {a: form for a, form in run.guest.installed.items() if form != ORIGINAL}
    assert run.strategy.wanted(run.state) == said


@settings(deadline=None, max_examples=40)
@given(st.lists(PHASES, min_size=1, max_size=2))
def test_the_state_does_not_grow_with_time(plans: list[list[tuple[int, Mix]]]) -> None:
    run = play(plans)
    entries = sum(len(addresses) for addresses in run.state.due.values())
    assert entries <= len(plans) * (QUICK.learn_epochs + QUICK.audit_epochs + 4)
    assert min(run.state.due, default=run.state.epoch + 1) > run.state.epoch
