"""Promote, retarget and revert for minutes on a guest under load; then report the cost.

    python -m tests.guest.soak --minutes 10

The exit code is 1 where the guest found anything wrong, verified too little, or the daemon grew.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from guest.image.boot import Guest
from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, Form
from optpolined.session.session import Session
from tests.guest.harness import config_of, open_session
from tests.guest.hot_cycle import Plan, checks, load, plan_hottest

SITES = 64
_BASE_SECONDS = 60
_BASE_ROUNDS = 3
_PROGRESS_SECONDS = 60
_LONGEST = 10
"""Times the minutes: so long may the guest take to verify enough calls."""


@dataclass(slots=True)
class Soak:
    """What was done so far."""

    rounds: int = 0
    pokes: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    base_kib: int = 0
    """RSS when the caches are warm: after a minute, or a third of a run that is shorter."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How much is to be done: at least so many seconds, and until the guest has verified enough."""

    seconds: float
    calls: int

    def goes_on(self, seconds: float, guest: Guest) -> bool:
        """Return whether the work goes on after so many seconds."""
        if seconds < self.seconds:
            return True
        return seconds < _LONGEST * self.seconds and checks(guest).calls < self.calls


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(description="Change a loaded guest's hot sites without end.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument(
        "--calls",
        type=int,
        default=10_000_000,
        help="to be verified at least; a guest on a busy machine gets up to ten times as long",
    )
    parser.add_argument("--growth", type=float, default=5, help="of the RSS at most, in percent")
    options = parser.parse_args(arguments)
    with Guest() as guest:
        guest.wait_ready()
        load(guest)
        before = checks(guest).calls
        with open_session(config_of(guest)) as session:
            _say(f"a loaded guest, {SITES} hot sites, {options.minutes:g} minutes")
            wanted = Wanted(options.minutes * 60, before + options.calls)
            soak = _soak(session, plan_hottest(session, SITES), guest, wanted)
            kib, usage, hits = _rss_kib(), session.arena.usage(), session.counters.int3_hits
        after = checks(guest)
    growth = 100 * (kib / (soak.base_kib or kib) - 1)
    verified, errors = after.calls - before, after.errors + soak.refused.total()
    _say(f"rounds: {soak.rounds}, pokes: {soak.pokes}, refused: {dict(soak.refused) or 'none'}")
    _say(f"arena: {usage.used} bytes used, {usage.retired} retired, {usage.free} free")
    _say(f"RSS: {soak.base_kib} KiB at first, {kib} KiB at the end, growth {growth:.1f} %")
    _say(f"verified calls: {verified}, int3 hits: {hits}, errors: {errors}")
    return int(errors != 0 or verified < options.calls or growth > options.growth)


def _soak(session: Session, plan: Plan, guest: Guest, wanted: Wanted) -> Soak:
    soak = Soak()
    learning: dict[GuestVirtual, Form] = dict.fromkeys(plan.sites, LEARNING)
    began = time.monotonic()
    told = began
    while wanted.goes_on((now := time.monotonic()) - began, guest):
        session.look()
        for forms in (learning, *plan.cycle(soak.rounds)):
            _apply(session, soak, forms)
            session.counters.count()
        session.recycle()
        soak.rounds += 1
        is_warm = soak.rounds >= _BASE_ROUNDS
        if not soak.base_kib and is_warm and now - began > min(_BASE_SECONDS, wanted.seconds / 3):
            soak.base_kib = _rss_kib()
        if now - told > _PROGRESS_SECONDS:
            told = now
            _say(f"{now - began:.0f} s: {soak.pokes} pokes, {checks(guest)}, {_rss_kib()} KiB")
    return soak


def _apply(session: Session, soak: Soak, wanted: dict[GuestVirtual, Form]) -> None:
    report = session.apply(wanted)
    soak.pokes += report.done
    soak.refused += report.refused


def _rss_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
