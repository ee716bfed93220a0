"""Counters that are read late, twice, in part, after a reset or around a wrap.

A guest of three CPUs has real records, some of them about to wrap, and calls the same targets all
the time.  Whatever happens to what is read of them: nothing raises, and no site loses a target.
"""

from dataclasses import dataclass, field, replace
from enum import Enum, auto

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import ORIGINAL, Chain, Form
from optpolined.kernel.module.counters import RECORD_DTYPE, Records, difference, set_cleared
from optpolined.learning.hysteresis import Hysteresis
from optpolined.learning.state import HysteresisState
from optpolined.learning.strategy import Decision, SiteEpoch, Snapshot

from .synthetic import SECONDS, site, target
from .test_properties import QUICK

CPUS = 3
RATES = {target(0): 600, target(1): 300, target(2): 33, target(3): 33, target(4): 33}
"""Calls an epoch, on each CPU, at every site: two hot targets and a tail that is missed."""
SITES = [site(n) for n in range(3)]
CALM_EPOCHS = 8


class Trouble(Enum):
    """What happens in an epoch."""

    NONE = auto()
    EMPTY = auto()
    """Nobody calls anything."""
    LATE = auto()
    """One CPU's records are read with the next epoch's."""
    HALF = auto()
    """One CPU makes no calls."""
    CLEARED = auto()
    """The host clears the records, and says so."""
    RESET = auto()
    """Somebody clears those of a CPU, and does not."""
    AGAIN = auto()
    """The snapshot comes a second time, as of the same epoch."""
    OLD = auto()
    """It comes as of an epoch of long ago, and then rightly."""
    TIMELESS = auto()
    """The clock did not move."""
    ENDLESS = auto()
    """The clock is nonsense."""


@dataclass
class Disturbed:
    """A guest, its strategy, and the reader of its counters."""

    strategy: Hysteresis = field(default_factory=lambda: Hysteresis(QUICK))
    epoch: int = 0
    forms: dict[GuestVirtual, Form] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.raw: Records = np.zeros((CPUS, len(SITES)), RECORD_DTYPE)
        tail = slice(2, len(RATES))
        self.raw["slots"]["target"][:, :, : len(RATES)] = [called & 0xFFFFFFFF for called in RATES]
        self.raw["slots"]["count"][:, 0, tail] = 5000
        for cpu in range(CPUS):  # one after the other, and again and again while it is promoted
            self.raw["slots"]["count"][cpu, 1, tail] = (1 << 32) - 33 * (CALM_EPOCHS + 2 + cpu)
        self.raw["slots"]["count"][:, 2, tail] = (1 << 31) - 40
        self.raw["hits"] = (1 << 32) - 7000
        self.read = self.raw.copy()
        self.state: HysteresisState = self.strategy.initial(SITES)

    def step(self, trouble: Trouble) -> Decision:
        """An epoch: what it decided."""
        self.epoch += 1
        if trouble is Trouble.RESET:
            self.raw[self.epoch % CPUS] = np.zeros((), RECORD_DTYPE)
        if trouble is Trouble.CLEARED:
            self.raw[:] = np.zeros((), RECORD_DTYPE)
            set_cleared(self.read, range(len(SITES)))
        if trouble is not Trouble.EMPTY:
            self._call(CPUS - 1 if trouble is Trouble.HALF else CPUS)
        now = self.raw.copy()
        if trouble is Trouble.LATE:
            now[1] = self.read[1]
        gained = difference(self.read, now).by_record()
        self.read = now
        counts = {
            SITES[record]: SiteEpoch(gain.calls, gain.other, gain.hits)
            for record, gain in gained.items()
        }
        snapshot = Snapshot(self.epoch, self._seconds(trouble), counts, dict(self.forms))
        if trouble is Trouble.OLD:
            self._ignored(replace(snapshot, epoch=self.epoch - 5))
        self.state, decision = self.strategy.decide(self.state, snapshot)
        if trouble is Trouble.AGAIN:
            self._ignored(snapshot)
        self.forms.update(decision.wanted)
        return decision

    def _seconds(self, trouble: Trouble) -> float:
        return {Trouble.TIMELESS: 0.0, Trouble.ENDLESS: float("inf")}.get(trouble, SECONDS)

    def _ignored(self, snapshot: Snapshot) -> None:
        state, decision = self.strategy.decide(self.state, snapshot)
        assert state is self.state
        assert not decision.wanted

    def _call(self, cpus: int) -> None:
        for number, address in enumerate(SITES):
            form = self.forms.get(address, ORIGINAL)
            if not isinstance(form, Chain):
                continue
            for cpu in range(cpus):
                record = self.raw[cpu, number]
                for place, (called, rate) in enumerate(RATES.items()):
                    if called in form.targets:
                        hits = int(record["hits"]) + rate * form.counts_hits
                        record["hits"] = hits % (1 << 32)
                    else:
                        slot = record["slots"][place]
                        slot["target"] = called & 0xFFFFFFFF
                        slot["count"] = (int(slot["count"]) + rate) % (1 << 32)


TROUBLES = st.lists(
    st.tuples(st.sampled_from(Trouble), st.integers(min_value=1, max_value=4)), max_size=12
).map(lambda runs: [trouble for trouble, length in runs for _ in range(length)])


@settings(deadline=None, max_examples=150)
@given(TROUBLES)
def test_disturbed_counters_neither_raise_nor_demote(troubles: list[Trouble]) -> None:
    guest = Disturbed()
    for _ in range(CALM_EPOCHS):
        guest.step(Trouble.NONE)
    promoted = dict(guest.forms)
    for form in promoted.values():
        assert isinstance(form, Chain)
        assert set(form.targets) == {target(0), target(1)}
    for trouble in [*troubles, *[Trouble.NONE] * CALM_EPOCHS]:
        for address, form in guest.step(trouble).wanted.items():
            assert isinstance(form, Chain), (trouble, address)
            assert set(form.targets) >= {target(0), target(1)}, (trouble, address)


@settings(deadline=None, max_examples=20)
@given(TROUBLES)
def test_disturbed_counters_do_not_keep_a_site_from_its_targets(troubles: list[Trouble]) -> None:
    guest = Disturbed()
    for trouble in troubles:
        guest.step(trouble)
    for _ in range(4 * (CALM_EPOCHS + QUICK.quarantine_epochs_max)):
        guest.step(Trouble.NONE)
    for form in guest.forms.values():
        assert isinstance(form, Chain)
        assert set(form.targets) >= {target(0), target(1)}
