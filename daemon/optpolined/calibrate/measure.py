"""Measures forms side by side: every form in turn, round by round, in several placements."""

import os
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from optpolined.calibrate.forms import Maker
from optpolined.calibrate.programs import Program, Setting
from optpolined.calibrate.stub import LearnStub

__all__ = ("Case", "Ratio", "Sample", "measure", "pin", "ratios")

_CALLS_A_RUN: Final = 1 << 14
_RUNS: Final = 5


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured side by side, and what the ratios are to."""

    name: str
    setting: Setting
    forms: Mapping[str, Maker]
    base: str
    placements: int
    rounds: int
    evicted: bool = False


@dataclass(frozen=True, slots=True)
class Ratio:
    """A form's cost, in ratio to the base's: median, 10 % and 90 % quantile of all rounds."""

    median: float
    low: float
    high: float
    cycles: float
    """The median of the cycles of a call, its part of the loop included."""


Sample = Mapping[str, float]
"""The cycles of a call in each form, in one round."""


def pin() -> int:
    """Keep this process on one CPU, the last that it may use; return its number."""
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    return cpu


def measure(case: Case, stub: LearnStub, say: Callable[[str], None]) -> dict[str, Ratio]:
    """Measure ``case``; report each step to ``say``.

    :raise AssertionError: a call did not reach its target.
    """
    chance = random.Random(0)  # noqa: S311 - the same at every run
    samples: list[Sample] = []
    for placement in range(case.placements):
        say(f"{case.name}, placement {placement + 1} of {case.placements}")
        with ExitStack() as stack:
            programs = {
                form: stack.enter_context(Program(maker, case.setting, placement, stub))
                for form, maker in case.forms.items()
            }
            for program in programs.values():
                program.cycles_per_call()
            samples += [_round(case, programs, chance) for _ in range(case.rounds)]
    return ratios(samples, case.base)


def ratios(samples: Sequence[Sample], base: str) -> dict[str, Ratio]:
    """Return each form's ratio to ``base`` in the same round, over at least two rounds."""
    result = {}
    for form in samples[0]:
        shares = [sample[form] / sample[base] for sample in samples]
        tenths = statistics.quantiles(shares, n=10, method="inclusive")
        cycles = statistics.median(sample[form] for sample in samples)
        result[form] = Ratio(statistics.median(shares), tenths[0], tenths[-1], cycles)
    return result


def _round(case: Case, programs: Mapping[str, Program], chance: random.Random) -> Sample:
    """Run every form once, in an order of this round."""
    names = chance.sample(list(programs), len(programs))
    taken = {name: _quiet(case, programs[name]) for name in names}
    return {name: taken[name] for name in programs}


def _quiet(case: Case, program: Program) -> float:
    """Return the least of some short runs in a row.

    Noise only adds: an interrupt, another process, a neighbour on the host.  A run takes about half
    a millisecond, less than a time slice, so one of a few in a row is usually undisturbed.  Each
    round has its own runs, so that a slow minute slows the base and the form alike.
    """
    if case.evicted:
        return min(program.cycles_per_call_evicted() for _ in range(_RUNS))
    calls = case.setting.passes * case.setting.sites
    repetitions = max(1, _CALLS_A_RUN // calls)
    return min(program.cycles_per_call(repetitions) for _ in range(_RUNS))
