"""Draws what was measured; the only module here that needs matplotlib."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from optpolined.calibrate.forms import DIRECT, RETPOLINE
from optpolined.calibrate.programs import Layout, Order
from tests.bench.cases import SITES, TARGETS, Results

__all__ = ("draw",)


def draw(results: Results, title: str, path: Path) -> None:
    """Write ``path``: forms by number of sites above, several targets by their number below."""
    figure = Figure(figsize=(14, 11), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"What a call costs\n{title}")
    above, below = figure.subplots(2, 2)
    for axes, layout in zip(above, Layout, strict=True):
        _bars(axes, results, layout)
    for axes, order in zip(below, Order, strict=True):
        _curves(axes, results, order)
    figure.savefig(path, dpi=110)


def _bars(axes: Axes, results: Results, layout: Layout) -> None:
    forms = list(results[f"{layout} {SITES[0]}"])
    height = 0.8 / len(SITES)
    for number, sites in enumerate(SITES):
        found = [results[f"{layout} {sites}"][form] for form in forms]
        medians = [ratio.median for ratio in found]
        spread = [
            [ratio.median - ratio.low for ratio in found],
            [ratio.high - ratio.median for ratio in found],
        ]
        places = [place + number * height for place in range(len(forms))]
        axes.barh(places, medians, height, xerr=spread, label=f"{sites} sites")
    axes.set_yticks([place + height for place in range(len(forms))], forms)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_title(f"{layout}: ratio to a {DIRECT}")
    axes.legend()


def _curves(axes: Axes, results: Results, order: Order) -> None:
    for form in results[f"{order} {TARGETS[0]}"]:
        found = [results[f"{order} {targets}"][form] for targets in TARGETS]
        medians = [ratio.median for ratio in found]
        axes.plot(TARGETS, medians, marker="o", label=form)
        axes.fill_between(
            TARGETS, [ratio.low for ratio in found], [ratio.high for ratio in found], alpha=0.15
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(TARGETS, [str(targets) for targets in TARGETS])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("targets")
    axes.set_title(f"order {order}: ratio to a {RETPOLINE}")
    axes.legend()
