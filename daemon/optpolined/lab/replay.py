"""Runs a strategy on a trace, with the same code as in the daemon.

A strategy other than the recorded one would have poked other sites, and so counted other calls.  It
runs in a :class:`SimulatedGuest`, which counts the calls of ``find_actual_calls`` according to its
pokes.  It obeys the pins and bans of the trace, and keeps its own settings where those of the
recorded one were changed.  Its censuses are those of the trace.

The recorded strategy with the recorded settings gets the inputs that it got then, epoch by epoch,
whatever it wants.  So it makes the decisions that it made in the daemon.  The trace holds these
decisions, and the replay compares.  Its result is computed from the same calls, with the forms that
really stood at the sites.
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import ORIGINAL, Form, LearnKeys
from optpolined.lab.actual_calls import EpochCalls
from optpolined.lab.score import Score
from optpolined.lab.simulated_guest import SimulatedGuest, as_poked
from optpolined.learning.config import LearningConfig
from optpolined.learning.runner import StrategyRunner
from optpolined.learning.shape import KeyTable
from optpolined.learning.strategies import StrategyName
from optpolined.learning.trace.model import Trace, TraceEpoch, summed

__all__ = ("ReplayResult", "is_recorded", "replay", "replay_recorded")

Tick = Callable[[], None]
"""Called after each epoch."""


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """The result of a replay."""

    score: Score
    decisions: Sequence[Mapping[GuestVirtual, Form]]
    """The sites whose wanted form each epoch changed."""
    differs_at: int | None = None
    """The first epoch in which a recorded strategy does not decide as recorded."""


def is_recorded(trace: Trace, strategy: StrategyName, learning: LearningConfig) -> bool:
    """Return whether the trace starts with this strategy and these settings."""
    recorded = trace.header.learning
    return trace.header.strategy is strategy and all(
        getattr(recorded, part) == getattr(learning, part)
        for part in (strategy.value, "shape", "costs")
    )


def replay(
    trace: Trace,
    actual: Sequence[EpochCalls],
    strategy: StrategyName,
    learning: LearningConfig,
    tick: Tick = lambda: None,
) -> ReplayResult:
    """Run a strategy in a guest that makes the calls of ``truth``.

    Key tables are the latest that the trace has at that time.
    """
    runner, world = StrategyRunner(learning, strategy), SimulatedGuest()
    score = Score(learning.costs)
    decisions = []
    tables: dict[GuestVirtual, KeyTable] = {}
    for epoch, covered, calls in zip(trace.epochs, trace.covering(), actual, strict=True):
        for site in epoch.went:
            world.drop_site(site)
            tables.pop(site, None)
        _apply_changes(runner, epoch, with_settings=False)
        tables.update(epoch.tables)
        read = {
            site: table
            for site, table in tables.items()
            if isinstance(world.forms.get(site), LearnKeys)
        }
        if covered is not world.covered:
            world.covered = covered
            world.poke(runner.wanted)
        counts = world.count(calls, census=epoch.census)
        score.epoch(calls, epoch.seconds, world.forms, covered if epoch.census else None)
        snapshot = runner.snapshot(
            epoch.epoch,
            epoch.seconds,
            counts,
            read,
            world.forms,
            covered=covered,
            census=epoch.census,
        )
        decisions.append(runner.decide(snapshot))
        score.poke(world.poke(decisions[-1]))
        tick()
    return ReplayResult(score, decisions)


def replay_recorded(
    trace: Trace,
    actual: Sequence[EpochCalls],
    tick: Tick = lambda: None,
) -> ReplayResult:
    """Run the recorded strategy on the recorded inputs."""
    assert trace.header.strategy is not None
    runner = StrategyRunner(trace.header.learning, trace.header.strategy)
    score = Score(trace.header.learning.costs)
    decisions = []
    differs_at = None
    standing: dict[GuestVirtual, Form] = {}
    covered: AbstractSet[GuestVirtual] = frozenset()
    for (epoch, forms), covered, calls in zip(
        trace.standing(), trace.covering(), actual, strict=True
    ):
        if score.calls:
            score.poke({s: f for s, f in epoch.forms.items() if f != standing.get(s, ORIGINAL)})
        standing = dict(forms)
        _apply_changes(runner, epoch, with_settings=True)
        score.epoch(calls, epoch.seconds, forms, covered if epoch.census else None)
        counts = {site: summed(by_cpu) for site, by_cpu in epoch.counts.items()}
        snapshot = runner.snapshot(
            epoch.epoch,
            epoch.seconds,
            counts,
            epoch.tables,
            standing,
            covered=covered,
            census=epoch.census,
        )
        decisions.append(runner.decide(snapshot))
        if differs_at is None and decisions[-1] != epoch.wanted:
            differs_at = epoch.epoch
        tick()
    if decisions:
        poked = as_poked(decisions[-1], covered)
        stays = {s for s in covered & poked.keys() if poked[s] == standing.get(s, ORIGINAL)}
        score.poke({site: form for site, form in poked.items() if site not in stays})
    return ReplayResult(score, decisions, differs_at)


def _apply_changes(runner: StrategyRunner, epoch: TraceEpoch, *, with_settings: bool) -> None:
    """Apply what happened before the epoch.

    :param with_settings: Whether changed settings apply to this runner.
    """
    if epoch.came or epoch.went:
        runner.update_sites(epoch.came, epoch.went)
    for said in epoch.said:
        if not isinstance(said, LearningConfig):
            runner.set_overrides(said)
        elif with_settings:
            runner.use_settings(said)
