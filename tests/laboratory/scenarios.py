"""Made-up guests: a scenario has the calls of all its sites, epoch by epoch.

They are deterministic: noise comes from a seeded generator of our own, because the sequence of the
library's may change.  Every call is counted (``LEARNING`` stands at every site), so a trace has all
calls.

Scenarios with censuses have short epochs in which one counts.  All sites but a few are covered.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING
from optpolined.kernel.module.counters import RECORD_DTYPE, Records, each_cpu, set_cleared
from optpolined.learning.strategy import SiteEpoch
from optpolined.learning.trace.model import ByCpu, Trace, TraceEpoch, TraceHeader

__all__ = ("SCENARIOS", "Rates", "alternation", "make", "name", "site", "target")

SECONDS = 0.5
CPUS = 2

Rates = Mapping[int, float]
"""Calls an epoch of one site on one CPU, by the number of the target."""
SiteRates = Callable[[int, int], Rates]
"""The rates of one epoch on one CPU."""


def site(number: int) -> GuestVirtual:
    """Return the address of a site."""
    return GuestVirtual(0xFFFFFFFF81000000 + 16 * number)


def target(number: int) -> GuestVirtual:
    """Return the address of a target."""
    return GuestVirtual(0xFFFFFFFF82000000 + 16 * number)


def name(address: GuestVirtual) -> str:
    """Return the symbol of a target."""
    number, is_target = (address & 0xFFFFFF) >> 4, address >= target(0)
    return f"target_{number}" if is_target else f"caller_{number}"


class _Noise:
    """Return a count with noise of about its square root; a linear congruence is good enough."""

    def __init__(self) -> None:
        self._state = 20181212

    def count(self, mean: float) -> int:
        if mean < 50:  # it would only make the file larger
            return round(mean)
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        # The sum of four evenly spread numbers: nearly a bell, with a standard deviation of 1.
        parts = [(self._state >> shift & 0xFF) / 255 - 0.5 for shift in (56, 48, 40, 32)]
        return max(0, round(mean + sum(parts) * math.sqrt(3 * mean)))


def make(title: str, epochs: int, sites: Sequence[SiteRates], *, noisy: bool = True) -> Trace:
    """Return a trace of so many epochs."""
    noise = _Noise() if noisy else None
    return _trace(
        title,
        (
            {site(number): _counted(rates, epoch, noise) for number, rates in enumerate(sites)}
            for epoch in range(epochs)
        ),
        len(sites),
    )


def _counted(rates: SiteRates, epoch: int, noise: _Noise | None) -> ByCpu:
    counts = {}
    for cpu in range(CPUS):
        count = noise.count if noise else round
        calls = {target(n): count(rate) for n, rate in rates(epoch, cpu).items()}
        gain = SiteEpoch({called: number for called, number in calls.items() if number})
        if gain.calls:
            counts[cpu] = gain
    return counts


def _trace(
    title: str, epochs: Iterator[Mapping[GuestVirtual, ByCpu]], number_of_sites: int
) -> Trace:
    sites = [site(number) for number in range(number_of_sites)]
    made = [
        TraceEpoch(
            place,
            SECONDS,
            {address: by_cpu for address, by_cpu in counts.items() if by_cpu},
            came={} if place else dict.fromkeys(sites),
            forms={} if place else dict.fromkeys(sites, LEARNING),
        )
        for place, counts in enumerate(epochs)
    ]
    called = {t for e in made for c in e.counts.values() for g in c.values() for t in g.calls}
    names = {address: name(address) for address in [*sites, *sorted(called)]}
    return Trace(TraceHeader(f"made up: {title}"), made, names)


def _mix(*rates: float, first: int = 0) -> dict[int, float]:
    return {first + place: rate for place, rate in enumerate(rates) if rate}


def _steady(*rates: float, first: int = 0) -> SiteRates:
    mix = _mix(*rates, first=first)
    return lambda _epoch, _cpu: mix


def _phases(period: int, *mixes: Rates) -> SiteRates:
    return lambda epoch, _cpu: mixes[epoch // period % len(mixes)]


# Four targets, of which three are nearly as hot as each other: what is ahead changes from epoch to
# epoch, and it takes a margin not to care.
_FOUR = (300.0, 212.0, 200.0, 190.0)

# Two hot targets and a long thin tail of others, like most sites with more than one target.
_TAIL = 20
_HOT = (3000.0, 1500.0)
_TAIL_RATE = 12.0


def _with_tail(*rates: float, first: int, tail: int, scale: float = 1.0) -> dict[int, float]:
    hot = _mix(*[rate * scale for rate in rates], first=first)
    return hot | dict.fromkeys(range(tail, tail + _TAIL), _TAIL_RATE * scale)


def stable() -> Trace:
    """Make sites of one to four targets that never change."""
    return make("stable", 160, [_steady(*_FOUR[: 1 + n], first=8 * n) for n in range(4)])


def zipf() -> Trace:
    """Make sites with 64 targets, from so skewed that a chain pays to so even that nothing does."""

    def rates(exponent: float, first: int) -> SiteRates:
        weights = [1 / rank**exponent for rank in range(1, 65)]
        return _steady(*[3000 * weight / sum(weights) for weight in weights], first=first)

    exponents = (3.0, 2.5, 2.0, 1.5, 1.0)
    sites = [rates(exponent, 64 * n) for n, exponent in enumerate(exponents)]
    return make("zipf", 160, sites, noisy=False)


def phase_change() -> Trace:
    """Change the hot targets of all sites in the middle."""

    def rates(n: int) -> SiteRates:
        phases = [_with_tail(*_HOT, first=64 * n + 4 * k, tail=64 * n + 32) for k in (0, 1)]
        return _phases(120, *phases)

    return make("phase change", 240, [rates(n) for n in range(2)])


def drift() -> Trace:
    """Let one hot target slowly give way to the next one, and that to a third."""

    def rates(n: int) -> SiteRates:
        def at(epoch: int, _cpu: int) -> Rates:
            step, done = divmod(epoch / 200, 1)
            hot = sum(_HOT)
            first = 64 * n + int(step)
            return _with_tail(hot * (1 - done), hot * done, first=first, tail=64 * n + 32)

        return at

    return make("drift", 400, [rates(n) for n in range(2)])


def bursts() -> Trace:
    """Make sites that are hot, nearly silent and silent in turn, each at its own pace."""

    def rates(n: int, length: int) -> SiteRates:
        hot = _with_tail(*_HOT, first=64 * n, tail=64 * n + 32)
        quiet = _with_tail(*_HOT, first=64 * n, tail=64 * n + 32, scale=1 / 24)
        return _phases(length, hot, quiet, {})

    return make("bursts", 240, [rates(n, length) for n, length in enumerate((3, 11, 25))])


def alternation(period: float, epochs: int, *, groups: int = 5, sites: int = 1) -> Trace:
    """Make a site that calls one of so many disjoint groups of targets at a time, then the next.

    :param period: Epochs that a group lasts; if it is not whole, an epoch may see two groups.
    """

    def at(epoch: int, _cpu: int) -> Rates:
        rates: dict[int, float] = {}
        moment = float(epoch)
        while moment < epoch + 1 - 1e-9:
            turn = int(moment / period + 1e-9)
            end = min((turn + 1) * period, epoch + 1.0)
            for number, rate in _mix(*_FOUR[:3], first=3 * (turn % groups)).items():
                rates[number] = rates.get(number, 0.0) + rate * (end - moment)
            moment = end
        return rates

    return make(f"alternation {period:g}", epochs, [at] * sites)


def one_cpu_differs() -> Trace:
    """Let one CPU call other targets than the other does, as for an interrupt."""

    def rates(n: int) -> SiteRates:
        return lambda _epoch, cpu: (
            _mix(*(250.0, 110.0), first=8 * n + 2) if cpu else _mix(*(900.0, 300.0), first=8 * n)
        )

    return make("one CPU differs", 160, [rates(n) for n in range(4)])


def wrap_and_reset() -> Trace:
    """Make counters that are about to wrap, and records that are cleared twice during a read."""
    sites, noise = 3, _Noise()
    raw = np.zeros((CPUS, sites), RECORD_DTYPE)
    for number in range(sites):
        raw["slots"]["target"][:, number, :2] = [target(4 * number) & 0xFFFFFFFF, 0]
        raw["slots"]["count"][:, number, 0] = 0xFFFFFFFF - 20_000 * (number + 1)

    def epochs() -> Iterator[Mapping[GuestVirtual, ByCpu]]:
        nonlocal raw
        for epoch in range(160):
            before = raw.copy()
            if epoch in (50, 110):
                set_cleared(before, range(sites))
                raw = before.copy()
            _count_raw(raw, noise)
            yield _read_raw(before, raw)

    return _trace("counters wrap and are reset", epochs(), sites)


def _count_raw(raw: Records, noise: _Noise) -> None:
    for cpu in range(CPUS):
        for number in range(raw.shape[1]):
            for place, rate in enumerate((900.0, 120.0)):
                slot = raw["slots"][cpu, number, place]
                slot["target"] = target(4 * number + place) & 0xFFFFFFFF
                slot["count"] = (int(slot["count"]) + noise.count(rate)) % (1 << 32)


def _read_raw(before: Records, now: Records) -> dict[GuestVirtual, dict[int, SiteEpoch]]:
    counts: dict[GuestVirtual, dict[int, SiteEpoch]] = {}
    for cpu, gained in enumerate(each_cpu(before, now)):
        for record, gain in gained.by_record().items():
            counts.setdefault(site(record), {})[cpu] = SiteEpoch(gain.calls, gain.other, gain.hits)
    return counts


def cold_and_hot() -> Trace:
    """Make ten hot sites among a thousand that are called now and then."""

    def rates(n: int) -> SiteRates:
        if n % 101 == 0:
            return _steady(5000.0 / (1 + n // 101), 300.0, first=n)
        return lambda epoch, cpu: _mix(4.0, first=2000) if (epoch + 7 * n) % 97 == cpu else {}

    return make("ten hot of a thousand", 128, [rates(n) for n in range(1010)], noisy=False)


_FIRST_CENSUS, _CENSUS, _PAUSE = 4, 4, 16
"""Epochs: enough of a census for a promotion, with pauses that keep the default duty share."""
_FIRST_CENSUS_SECONDS, _CENSUS_SECONDS = 0.3, 0.1


def _census_seconds(epoch: int) -> float | None:
    """Return the length of an epoch of a census; ``None`` for other epochs."""
    if epoch < _FIRST_CENSUS:
        return _FIRST_CENSUS_SECONDS
    is_census = (epoch - _FIRST_CENSUS) % (_PAUSE + _CENSUS) >= _PAUSE
    return _CENSUS_SECONDS if is_census else None


def make_with_censuses(
    title: str, epochs: int, sites: Sequence[SiteRates], *, by_stub: int, noisy: bool = True
) -> Trace:
    """Return a trace with a census at the start and then every 8.4 seconds.

    :param by_stub: How many of the sites, the last ones, no census covers.
    """

    def shortened(rates: SiteRates) -> SiteRates:
        def at(epoch: int, cpu: int) -> Rates:
            part = (_census_seconds(epoch) or SECONDS) / SECONDS
            return {called: rate * part for called, rate in rates(epoch, cpu).items()}

        return at

    trace = make(title, epochs, [shortened(rates) for rates in sites], noisy=noisy)
    covered = tuple(site(number) for number in range(len(sites) - by_stub))
    made = [
        replace(
            epoch,
            seconds=_census_seconds(epoch.epoch) or SECONDS,
            census=_census_seconds(epoch.epoch) is not None,
            covered=() if epoch.epoch else covered,
        )
        for epoch in trace.epochs
    ]
    return replace(trace, epochs=made)


def census_cold_and_hot() -> Trace:
    """Make ten hot sites among a thousand that are called now and then; two learn by a stub."""

    def rates(n: int) -> SiteRates:
        if n % 101 == 0 or n > 1000:
            return _steady(5000.0 / (1 + n // 101), 300.0, first=n)
        return lambda epoch, cpu: _mix(4.0, first=2000) if (epoch + 7 * n) % 97 == cpu else {}

    sites = [rates(n) for n in range(1003)]
    title = "ten hot of a thousand, with censuses"
    return make_with_censuses(title, 128, sites, by_stub=2, noisy=False)


def census_phase_change() -> Trace:
    """Change all targets in the middle; one site becomes hot then, and one falls silent."""
    change = 150

    def rates(n: int) -> SiteRates:
        phases = [_with_tail(*_HOT, first=64 * n + 4 * k, tail=64 * n + 32) for k in (0, 1)]
        return _phases(change, *phases)

    sites = [
        *[rates(n) for n in range(3)],
        _phases(change, {}, _mix(400.0, 200.0, first=300)),
        _phases(change, _mix(400.0, 200.0, first=310), {}),
        _phases(change, _mix(600.0, first=320), _mix(600.0, first=321)),
    ]
    return make_with_censuses("phase change, with censuses", 2 * change, sites, by_stub=1)


SCENARIOS: dict[str, Callable[[], Trace]] = {
    "stable": stable,
    "zipf": zipf,
    "phase-change": phase_change,
    "drift": drift,
    "bursts": bursts,
    "alternation-half": lambda: alternation(0.5, 300),
    "alternation-below-one": lambda: alternation(0.9, 300),
    "alternation-one": lambda: alternation(1, 300),
    "alternation-above-one": lambda: alternation(1.1, 300),
    "alternation-ten": lambda: alternation(10, 300),
    "one-cpu-differs": one_cpu_differs,
    "wrap-and-reset": wrap_and_reset,
    "cold-and-hot": cold_and_hot,
    "census-cold-and-hot": census_cold_and_hot,
    "census-phase-change": census_phase_change,
}
"""Return the scenarios by the name of their file."""
