"""A guest under load, its hottest sites, and the forms that `crash` and `soak` give them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from guest.image.boot import Guest
from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import ORIGINAL, Chain, Form
from optpolined.kernel.sites.scan import Site
from optpolined.session.session import Session
from tests.guest.harness import (
    Calls,
    bench_calls,
    called_while_learning,
    load_state,
    start_load,
    wait_bench,
)

__all__ = ("Checks", "Plan", "checks", "load", "plan_hottest")

BENCH = ("call_1", "call_2_random", "call_4_random", "tail_1", "tail_2_random", "tail_4_random")

_TARGETS_MAX = 4


@dataclass(frozen=True, slots=True)
class Checks:
    """How many results the guest has checked, and the errors: results, BUGs, dead workers."""

    calls: int
    errors: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Sites, and the targets of each site, the most called first."""

    sites: Mapping[GuestVirtual, Site]
    targets: Mapping[GuestVirtual, tuple[GuestVirtual, ...]]

    def cycle(self, turn: int = 0) -> Iterator[dict[GuestVirtual, Form]]:
        """Yield the forms of all sites: promoted, then retargeted, then reverted."""
        yield {site: Chain(targets) for site, targets in self.targets.items()}
        retargeted: dict[GuestVirtual, Form] = {}
        for site, targets in self.targets.items():
            first = (turn + 1) % len(targets)
            retargeted[site] = Chain(targets[first:] + targets[:first], counts_hits=True)
        yield retargeted
        yield dict.fromkeys(self.targets, ORIGINAL)


def load(guest: Guest) -> None:
    """Start optload, and some scenarios of optbench at full speed."""
    start_load(guest)
    guest.run("echo reset >/proc/optbench; echo rate 0 >/proc/optbench")
    for name in BENCH:
        guest.run(f"echo run {name} >/proc/optbench")
    wait_bench(guest, BENCH)


def checks(guest: Guest) -> Checks:
    """Read the guest's own checks."""
    optload, optbench = load_state(guest), bench_calls(guest)["total"]
    bugs = int(guest.run("dmesg | grep -cE 'BUG|Oops|WARNING' || true"))
    stopped = int(optload["workers"] == 0)
    return Checks(optload["checks"] + optbench[0], optload["errors"] + optbench[1] + bugs + stopped)


def plan_hottest(session: Session, count: int) -> Plan:
    """Plan for the sites of optbench that run, and the hottest of the kernel: ``count`` in all."""
    eligible = session.survey.inventory.eligible

    def of_bench(called: Calls) -> list[GuestVirtual]:
        return [site for site in called if called[site] and is_bench(eligible[site])]

    called = called_while_learning(
        session,
        eligible,
        f"{count} sites are called, and all that run in optbench",
        lambda called: len(of_bench(called)) == len(BENCH) and len(+total(called)) >= count,
    )
    bench = of_bench(called)
    others = [site for site, _ in total(called).most_common() if site not in bench]
    chosen = [*bench, *others][:count]
    targets = {
        site: tuple(sorted(called[site], key=lambda target: -called[site][target])[:_TARGETS_MAX])
        for site in chosen
    }
    return Plan({site: eligible[site] for site in chosen}, targets)


def total(called: Calls) -> Counter[GuestVirtual]:
    """Return how often each site was called."""
    return Counter({site: calls.total() for site, calls in called.items()})


def is_bench(site: Site) -> bool:
    """Return whether a site is that of a scenario which runs."""
    return site.function in _BENCH_FUNCTIONS


_BENCH_FUNCTIONS = frozenset(f"optbench_{name}" for name in BENCH)
