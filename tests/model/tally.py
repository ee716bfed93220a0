"""What a run of the model checker did."""

from dataclasses import dataclass


@dataclass
class Tally:
    """Counted over all tests, and printed at the end."""

    states: int = 0
    violations: int = 0
    seeded: int = 0
    caught: int = 0
