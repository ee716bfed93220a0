"""Prints the comparison of strategies, as a table and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from optpolined.lab.clairvoyant import Clairvoyant
from optpolined.lab.replay import ReplayResult
from optpolined.lab.score import Score

__all__ = ("Comparison", "Row", "as_json", "row", "table")


@dataclass(frozen=True, slots=True)
class Row:
    """One strategy on one trace; shares are 0 to 1."""

    trace: str
    strategy: str
    epochs: int
    coverage: float
    of_clairvoyant: float
    """The coverage over that of the clairvoyant; 1 if the clairvoyant has none."""
    saved_cycles: float
    regret_cycles: float
    """The cycles that the clairvoyant saved beyond the strategy."""
    pokes: int
    flips: int
    stop_seconds: float
    first_promotion_seconds: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One trace: the result of each strategy, by its name."""

    trace: str
    clairvoyant: Clairvoyant
    outcomes: dict[str, ReplayResult]

    def rows(self) -> list[Row]:
        """Return the figures of each strategy."""
        return [
            row(self.trace, name, outcome.score, self.clairvoyant)
            for name, outcome in self.outcomes.items()
        ]


def row(trace: str, strategy: str, score: Score, best: Clairvoyant) -> Row:
    """Return the figures of one strategy on one trace."""
    return Row(
        trace=trace,
        strategy=strategy,
        epochs=len(score.calls),
        coverage=score.coverage,
        of_clairvoyant=score.coverage / best.coverage if best.coverage else 1.0,
        saved_cycles=score.saved_cycles,
        regret_cycles=best.saved_cycles - score.saved_cycles,
        pokes=sum(score.pokes),
        flips=score.flips,
        stop_seconds=score.stop_seconds,
        first_promotion_seconds=score.first_promotion_seconds,
    )


def table(comparisons: Sequence[Comparison]) -> Table:
    """Return all comparisons as a table with a section for each trace."""
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("trace", "strategy"):
        drawn.add_column(heading, no_wrap=True)
    for heading in (
        "coverage",
        "of best",
        "saved Mcycles",
        "regret",
        "pokes",
        "flips",
        "stopped ms",
        "first s",
    ):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for comparison in comparisons:
        for place, it in enumerate(comparison.rows()):
            first = it.first_promotion_seconds
            drawn.add_row(
                "" if place else it.trace,
                it.strategy,
                f"{it.coverage:.1%}",
                f"{it.of_clairvoyant:.3f}",
                f"{it.saved_cycles / 1e6:.2f}",
                f"{it.regret_cycles / 1e6:.2f}",
                str(it.pokes),
                str(it.flips),
                f"{it.stop_seconds * 1e3:.1f}",
                "never" if first is None else f"{first:.1f}",
            )
        best = comparison.clairvoyant
        drawn.add_row(
            "",
            "(clairvoyant)",
            f"{best.coverage:.1%}",
            "",
            f"{best.saved_cycles / 1e6:.2f}",
            end_section=True,
        )
    return drawn


def as_json(comparisons: Sequence[Comparison]) -> list[dict[str, object]]:
    """Return the same figures, not rounded."""
    return [asdict(it) for comparison in comparisons for it in comparison.rows()]
