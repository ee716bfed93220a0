"""Draws a comparison; the only module of the daemon that needs matplotlib."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from optpolined.lab.table import Comparison

__all__ = ("draw",)

_SMOOTH_EPOCHS = 5


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """Write ``path``: for each trace, coverage over time above and pokes so far below.

    :raise OSError: it cannot be written.
    """
    figure = Figure(figsize=(6 * len(comparisons), 7), layout="constrained")
    FigureCanvasAgg(figure)
    panes = figure.subplots(2, len(comparisons), squeeze=False, sharex="col")
    for comparison, above, below in zip(comparisons, *panes, strict=True):
        _draw_one(comparison, above, below)
    figure.savefig(path, dpi=90)


def _draw_one(comparison: Comparison, above: Axes, below: Axes) -> None:
    best = comparison.clairvoyant
    above.plot(_shares(best.direct, best.calls), color="0.8", label="clairvoyant")
    for name, outcome in comparison.outcomes.items():
        score = outcome.score
        above.plot(_shares(score.direct, score.calls), label=name)
        below.plot(list(accumulate(score.pokes)), label=name)
    above.set_title(comparison.trace)
    above.set_ylim(-0.02, 1.02)
    above.set_ylabel(f"coverage, mean of {_SMOOTH_EPOCHS} epochs")
    below.set_ylabel("pokes so far")
    below.set_yscale("symlog")
    below.set_ylim(bottom=0)
    below.set_xlabel("epoch")
    above.legend()


def _shares(direct: Sequence[float], calls: Sequence[int]) -> list[float]:
    """Return the moving coverage; an epoch without calls has the value of those before it."""
    shares: list[float] = []
    for end in range(1, len(calls) + 1):
        window = slice(max(0, end - _SMOOTH_EPOCHS), end)
        total = sum(calls[window])
        shares.append(sum(direct[window]) / total if total else (shares or [0.0])[-1])
    return shares
