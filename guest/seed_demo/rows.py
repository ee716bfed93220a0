"""A row of the seed's table: one system, whether it works, and what that is concluded from."""

from collections.abc import Callable
from dataclasses import dataclass

from guest.seed_demo.bench import Bench

__all__ = ("Evidence", "Row", "row")

Evidence = dict[str, object]


@dataclass(frozen=True, slots=True)
class Row:
    """``works`` is concluded from ``evidence`` alone: every check in it must hold."""

    name: str
    works: bool
    evidence: Evidence


def row(name: str, checks: dict[str, bool], **seen: object) -> Row:
    """A row that works where all of ``checks`` hold; ``seen`` is what they were made on."""
    return Row(name, all(checks.values()), {"checks": checks, **seen})


RowMaker = Callable[[Bench], Row]
