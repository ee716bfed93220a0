"""Writes what was measured as tables and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from optpolined.calibrate.forms import THUNK
from optpolined.calibrate.measure import Ratio
from optpolined.calibrate.programs import Layout, Order
from tests.bench.cases import (
    CLAIMS,
    DISPATCH_SITES,
    EVICTED,
    EVICTED_SITES,
    OPERANDS,
    SITES,
    TARGETS,
    Results,
)

__all__ = ("document", "table", "text")

Machine = Mapping[str, str]
"""The machine for which the numbers hold: the CPU, the load, the thunk."""


def text(machine: Machine, results: Results) -> str:
    """Return all tables, and whether the claims of issue 4 were confirmed."""
    parts = [_lines("What a call costs", [f"{name:8}{value}" for name, value in machine.items()])]
    titles = {
        Layout.SPREAD: "Spread over text as in a kernel, ratio to a direct call, by sites",
        Layout.PACKED: "Packed, nothing between sites or targets, ratio to a direct call, by sites",
    }
    for layout, title in titles.items():
        columns = {f"{sites}": results[f"{layout} {sites}"] for sites in SITES}
        parts.append(_lines(title, table(columns)))
    hot = results[f"{Layout.SPREAD} {EVICTED_SITES}"]
    operands = {"hot": {form: hot[form] for form in OPERANDS}, EVICTED: results[EVICTED]}
    title = f"{EVICTED_SITES} sites, operand hot or evicted, ratio to a direct call"
    parts.append(_lines(title, table(operands)))
    for order in Order:
        columns = {f"{targets}": results[f"{order} {targets}"] for targets in TARGETS}
        title = f"{DISPATCH_SITES} sites, order {order}, ratio to retpoline, by targets"
        parts.append(_lines(title, table(columns)))
    parts.append(_lines("Claims", [claim.line(results) for claim in CLAIMS]))
    return "\n".join(parts)


def table(columns: Mapping[str, Mapping[str, Ratio]]) -> Sequence[str]:
    """Return a row for each form: in each column the median, and the 10 % and 90 % quantiles."""
    forms = list(next(iter(columns.values())))
    width = max(map(len, forms))
    head = " " * width + "".join(f"{name:>22}" for name in columns)
    return [head] + [
        f"{form:{width}}" + "".join(f"{_cell(ratios[form]):>22}" for ratios in columns.values())
        for form in forms
    ]


def document(machine: Machine, results: Results) -> dict[str, Any]:
    """Return the contents of the JSON file."""
    return {
        "machine": {**machine, "thunk_code": THUNK.split("\n")[1:-1]},
        "results": {
            case: {form: asdict(ratio) for form, ratio in ratios.items()}
            for case, ratios in results.items()
        },
        "claims": [
            {
                **asdict(claim),
                "ratio": results[claim.case][claim.form].median,
                "confirmed": claim.confirmed(results),
            }
            for claim in CLAIMS
        ],
    }


def _cell(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} [{ratio.low:.2f} {ratio.high:.2f}]"


def _lines(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines), ""])
