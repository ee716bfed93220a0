"""A row of the seed's table: one system, whether it works, and the evidence."""

from collections.abc import Callable
from dataclasses import dataclass

from guest.seed_demo.bench import Bench

__all__ = ("Evidence", "Row", "row")

Evidence = dict[str, object]


@dataclass(frozen=True, slots=True)
class Row:
    """A row; ``works`` follows from ``evidence`` alone: every check in it must hold."""

    name: str
    works: bool
    evidence: Evidence


def row(name: str, checks: dict[str, bool], **seen: object) -> Row:
    """Return a row that works if all of ``checks`` hold; ``seen`` has the checked figures."""
    return Row(name, all(checks.values()), {"checks": checks, **seen})


RowMaker = Callable[[Bench], Row]
