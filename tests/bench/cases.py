"""The cases that `make bench-forms` measures, and the claims of issue 4 about them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from optpolined.calibrate.forms import (
    DIRECT,
    DISPATCH,
    FORMS,
    INLINE,
    INLINE_MEMORY,
    ONE_TARGET,
    RETPOLINE,
)
from optpolined.calibrate.measure import Case, Ratio
from optpolined.calibrate.programs import Layout, Order, Setting

__all__ = (
    "CLAIMS",
    "DISPATCH_SITES",
    "EVICTED",
    "EVICTED_SITES",
    "OPERANDS",
    "SITES",
    "TARGETS",
    "Claim",
    "Results",
    "cases",
)

Results = Mapping[str, Mapping[str, Ratio]]
"""By the name of a case and a form."""

SITES: Final = (1, 1000, 8000)
TARGETS: Final = (2, 4, 8, 16)

OPERANDS: Final = (DIRECT, INLINE, INLINE_MEMORY)
EVICTED: Final = "evicted"
EVICTED_SITES: Final = 1000

DISPATCH_SITES: Final = 16
"""A kernel has few sites with so many targets, and they are hot."""

# A loop of one site has one of eight offsets in a cache line, so eight placements are all of them.
_PLACEMENTS: Final = {1: 8, 1000: 8, 8000: 4}
_ROUNDS: Final = 7


def cases() -> list[Case]:
    """Return all cases, in the order in which they are measured."""
    forms = [
        Case(f"{layout} {sites}", Setting(sites, layout=layout), FORMS, DIRECT, count, _ROUNDS)
        for layout in Layout
        for sites, count in _PLACEMENTS.items()
    ]
    picked = {name: FORMS[name] for name in OPERANDS}
    placements = _PLACEMENTS[EVICTED_SITES]
    evicted = Case(
        EVICTED, Setting(EVICTED_SITES), picked, DIRECT, placements, _ROUNDS, evicted=True
    )
    dispatch = [
        Case(
            f"{order} {targets}",
            Setting(DISPATCH_SITES, targets, order),
            DISPATCH,
            RETPOLINE,
            placements=4,
            rounds=5,
        )
        for order in Order
        for targets in TARGETS
    ]
    return [*forms, evicted, *dispatch]


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim: a form costs at most ``limit`` direct calls, in some case."""

    form: str
    case: str
    limit: float

    def confirmed(self, results: Results) -> bool:
        """Return whether this machine confirms the claim."""
        return results[self.case][self.form].median <= self.limit

    def line(self, results: Results) -> str:
        """Return one line with the claim and the measurement."""
        found = results[self.case][self.form].median
        verdict = "confirmed" if self.confirmed(results) else "NOT confirmed here"
        claimed = f"{self.form}, {self.case} sites, at most {self.limit:.2f} x direct"
        return f"{claimed}: {found:.3f}, {verdict}"


CLAIMS: Final = tuple(
    Claim(form, f"{layout} {sites}", limit)
    for layout in Layout
    for form, sites, limit in (
        (INLINE, 1000, 1.05),
        (INLINE, 8000, 1.05),
        (ONE_TARGET, 1000, 1.35),
    )
)
