"""Measures what an epoch's decision costs when every site changes: `make bench-learning`.

    python -m tests.bench.learning

The counters are those of a guest with 64 CPUs, and the daemon's own code finds what they gained.
Every site calls four targets from its first epoch on, and others after half of the time.  So all
sites learn, are promoted, miss, and learn again, all in the same epochs.  Times are CPU times of
this process alone.  Each is the least of some runs, because noise only adds.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Chain, Form
from optpolined.control.gc_pause import collector_rests
from optpolined.kernel.module.counters import RECORD_DTYPE, Records, difference, full_address
from optpolined.learning.hysteresis import Hysteresis
from optpolined.learning.strategy import SiteEpoch, Snapshot, Strategy

__all__ = ("Cost", "Guest", "costs", "dearest")

CPUS: Final = 64
SITES: Final = (2_000, 20_000)
EPOCHS: Final = 16

_RUNS: Final = 2
_SECONDS: Final = 0.5
_CALLS: Final = (70, 20, 6, 4)  # an epoch, on each CPU
_PHASES: Final = ((0, 1, 2, 3), (3, 4, 5, 6))  # the slots of the targets that are called
_FIRST_SITE: Final = 0xFFFF_FFFF_8100_0000
_FIRST_TARGET: Final = 0x8200_0000
_SLOTS: Final = 7


ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Cost:
    """The seconds that an epoch took: to find what was gained, and to decide."""

    counting: float
    deciding: float


class Guest:
    """Sites that behave alike, each with targets of its own; each CPU claims slots in its order."""

    def __init__(self, sites: int, cpus: int) -> None:
        self.sites = [GuestVirtual(_FIRST_SITE + 16 * number) for number in range(sites)]
        chance = np.random.default_rng(0)
        targets = (_FIRST_TARGET + 16 * np.arange(sites * _SLOTS, dtype=np.uint32)).reshape(
            sites, _SLOTS
        )
        self._targets = targets
        slots = np.tile(np.arange(_SLOTS, dtype=np.uint8), (cpus, sites, 1))
        self._order = chance.permuted(slots, axis=2)
        self._records: Records = np.zeros((cpus, sites), RECORD_DTYPE)
        for records, order in zip(self._records, self._order, strict=True):
            records["slots"]["target"] = np.take_along_axis(targets, order, axis=1)
        self.installed: dict[GuestVirtual, Form] = {}
        self._places = {
            full_address(int(target)): place
            for place, target in enumerate(targets.reshape(-1).tolist())
        }
        self._numbers = {site: number for number, site in enumerate(self.sites)}
        self._direct: npt.NDArray[np.bool_] = np.zeros((sites, _SLOTS), np.bool_)
        self._counts: npt.NDArray[np.bool_] = np.zeros(sites, np.bool_)
        self._counts_hits: npt.NDArray[np.bool_] = np.zeros(sites, np.bool_)

    def poke(self, wanted: Mapping[GuestVirtual, Form]) -> None:
        """Let these forms stand from the next epoch on."""
        self.installed.update(wanted)
        for site, form in wanted.items():
            number = self._numbers[site]
            self._direct[number] = False
            self._counts[number] = isinstance(form, Chain)
            self._counts_hits[number] = isinstance(form, Chain) and form.counts_hits
            if isinstance(form, Chain):
                for target in form.targets:
                    self._direct[number, self._places[target] % _SLOTS] = True

    def run(self, phase: int) -> tuple[Records, Records]:
        """Return the records before and after one epoch."""
        before = self._records.copy()
        cpus = len(before)
        calls = np.zeros(_SLOTS, np.uint32)
        calls[list(_PHASES[phase])] = _CALLS
        slow = np.where(self._direct, 0, calls) * self._counts[:, None]
        hits = np.where(self._direct, calls, 0).sum(axis=1) * self._counts_hits
        for cpu in range(cpus):
            gained = np.take_along_axis(slow, self._order[cpu], axis=1)
            self._records["slots"]["count"][cpu] += gained.astype(np.uint32)
        self._records["hits"] += hits.astype(np.uint32)
        return before, self._records


def costs(
    strategy: Strategy[Any], sites: int, *, cpus: int = CPUS, epochs: int = EPOCHS, runs: int = 1
) -> list[Cost]:
    """Return what each epoch cost: the least of ``runs`` times."""
    guest = Guest(sites, cpus)
    state = strategy.initial(guest.sites)
    found = []
    for epoch in range(epochs):
        before, after = guest.run(2 * epoch // epochs)
        counting, counts = _least(runs, partial(_count, guest.sites, before, after))
        snapshot = Snapshot(epoch, _SECONDS, counts, dict(guest.installed))
        deciding, (state, decision) = _least(runs, partial(strategy.decide, state, snapshot))
        found.append(Cost(counting, deciding))
        guest.poke(decision.wanted)
    _check(guest, strategy.wanted(state))
    return found


def _count(
    sites: Sequence[GuestVirtual], before: Records, after: Records
) -> dict[GuestVirtual, SiteEpoch]:
    """Return what the session makes of two snapshots."""
    return {
        sites[record]: SiteEpoch(gain.calls, gain.other, gain.hits)
        for record, gain in difference(before, after).by_record().items()
    }


def _least(runs: int, work: Callable[[], ResultT]) -> tuple[float, ResultT]:
    """Return the shortest time that ``work`` took, and its result, which is always the same."""
    taken = []
    for _ in range(runs):
        began = time.process_time()
        with collector_rests():  # as the daemon has it
            result = work()
        taken.append(time.process_time() - began)
    return min(taken), result


def _check(guest: Guest, wanted: Mapping[GuestVirtual, Form]) -> None:
    """Check that every site has been through all of it, and is promoted again."""
    assert len(wanted) == len(guest.sites)
    assert all(isinstance(form, Chain) and form.targets for form in wanted.values())


def dearest(found: Sequence[Cost]) -> Cost:
    """Return the most that an epoch cost, for each of the two."""
    return Cost(max(cost.counting for cost in found), max(cost.deciding for cost in found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cpus", type=int, default=CPUS)
    parser.add_argument("--sites", type=int, nargs=2, default=SITES, metavar=("FEW", "MANY"))
    options = parser.parse_args(arguments)
    few, many = (_measure(sites, options.cpus) for sites in options.sites)
    ratio = options.sites[1] / options.sites[0]
    sys.stdout.write(
        f"growth: with {ratio:.0f} times the sites, "
        f"deciding takes {many.deciding / few.deciding:.1f} times as long, "
        f"counting {many.counting / few.counting:.1f} times\n"
    )
    return 0


def _measure(sites: int, cpus: int) -> Cost:
    found = costs(Hysteresis(), sites, cpus=cpus, runs=_RUNS)
    most = dearest(found)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(
        f"{sites:6} sites x {cpus} CPUs x {len(_CALLS)} targets, the dearest of {len(found)} "
        f"epochs: deciding {most.deciding:.3f} s, counting {most.counting:.3f} s; "
        f"peak {peak:.0f} MiB, the guest's counters with it\n"
    )
    sys.stdout.flush()
    return most


if __name__ == "__main__":
    sys.exit(main())
