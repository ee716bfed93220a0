"""What the tests that patch a guest have in common."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from guest.image.boot import Guest
from guest.image.errors import GuestCommandError
from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Form
from optpolined.config import GuestConfig, PokeConfig, QemuConfig, Settings
from optpolined.kernel.sites.scan import Site
from optpolined.session.attach import attach
from optpolined.session.link import connect
from optpolined.session.session import Session

__all__ = (
    "PATIENCE_SECONDS",
    "Calls",
    "bench_calls",
    "called_while_learning",
    "config_of",
    "end_load",
    "load_state",
    "open_session",
    "site_in",
    "sites_called",
    "start_load",
    "targets_of",
    "wait_bench",
    "wait_until",
    "write_config",
)

PATIENCE_SECONDS = 240.0
"""The deadline of every wait.  It is generous because the machine may be busy with other work."""

_PAUSE_SECONDS = 0.1

Calls = Mapping[GuestVirtual, Counter[GuestVirtual]]
"""What each site called, by target."""

Seen = TypeVar("Seen")

_CALLED_MIN = 10


def wait_until(
    look: Callable[[], Seen],
    what: str,
    holds: Callable[[Seen], bool] = bool,
    *,
    pause_seconds: float = _PAUSE_SECONDS,
) -> Seen:
    """Look until what is seen holds, and return it.

    :param what: What the test waits for.
    :raise AssertionError: It does not hold before the deadline; says what was seen last.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        is_last = time.monotonic() > deadline
        if holds(seen := look()):
            return seen
        assert not is_last, f"not in {PATIENCE_SECONDS:g} s: {what}; seen last: {seen!r}"
        time.sleep(pause_seconds)


def config_of(guest: Guest, **poke: object) -> GuestConfig:
    """Return the settings with which a test attaches to ``guest``.

    The poke protocol is `breakpoint` unless given, because that is the one that can go wrong.
    """
    return GuestConfig(
        qemu=QemuConfig(qmp_socket=guest.qmp),
        poke=PokeConfig.model_validate({"protocol": "breakpoint", **poke}),
        runtime_directory=guest.directory / "run",
    )


def write_config(guest: Guest, directory: Path, text: str = "") -> None:
    """Write ``test.toml`` for the command line."""
    (directory / "test.toml").write_text(
        f'runtime_directory = "{guest.directory}/run"\n[qemu]\nqmp_socket = "{guest.qmp}"\n{text}',
        encoding="utf-8",
    )


@contextmanager
def open_session(config: GuestConfig) -> Iterator[Session]:
    """Attach; at the end put everything back, and check that the text is what it was."""
    with (
        connect(config) as link,
        attach(link, Settings(config), time.monotonic, force=False) as session,
    ):
        try:
            yield session
        finally:
            differences = session.restore()
        assert differences == []


def site_in(session: Session, function: str) -> Site:
    """Return the one site in a function of the guest."""
    (site,) = (
        site for site in session.survey.inventory.eligible.values() if site.function == function
    )
    return site


def called_while_learning(
    session: Session,
    sites: Iterable[GuestVirtual],
    what: str,
    enough: Callable[[Calls], bool],
) -> Calls:
    """Let ``sites`` learn until their calls are enough; return the calls, then put them back."""
    learning: dict[GuestVirtual, Form] = dict.fromkeys(sites, LEARNING)
    session.apply(learning)
    called: dict[GuestVirtual, Counter[GuestVirtual]] = {}

    def look() -> Calls:
        for site, gain in session.counters.count().items():
            if site in learning:
                called.setdefault(site, Counter()).update(gain.calls)
        return called

    wait_until(look, what, enough, pause_seconds=0.5)
    session.apply(dict.fromkeys(learning, ORIGINAL))
    return called


def sites_called(session: Session, count: int) -> list[GuestVirtual]:
    """Return at least ``count`` sites that were called while all learned, the hottest first."""

    def enough(called: Calls) -> bool:
        return sum(calls.total() > _CALLED_MIN for calls in called.values()) >= count

    eligible = session.survey.inventory.eligible
    called = called_while_learning(session, eligible, f"{count} sites are called", enough)
    return sorted(called, key=lambda site: -called[site].total())


def targets_of(session: Session, site: GuestVirtual, count: int) -> tuple[GuestVirtual, ...]:
    """Return ``count`` functions that the site really calls, the most called first."""
    called = called_while_learning(
        session,
        [site],
        f"{session.survey.symbols.name(site)} calls {count} functions",
        lambda called: len(called.get(site, ())) >= count,
    )
    return tuple(target for target, _ in called[site].most_common(count))


def start_load(guest: Guest, options: str = "") -> None:
    """Start optload, and wait until it has checked some results."""
    guest.run(
        "rm -f /run/optload /run/optload.exit; (optload --state /run/optload"
        f" {options}; echo $? >/run/optload.exit) >/run/optload.log 2>&1 &"
    )
    wait_until(
        lambda: load_state(guest), "optload checks results", lambda state: _checks(state) > 0
    )


def end_load(guest: Guest) -> dict[str, int]:
    """End optload, and return its last counts; check its results and the kernel's log."""
    guest.run("killall optload; until [ -s /run/optload.exit ]; do sleep 0.1; done")
    said = guest.run("cat /run/optload.exit /run/optload.log")
    assert said.startswith("0\n"), said
    state = load_state(guest)
    assert _checks(state) > 0
    assert state["errors"] == 0, state
    assert "BUG" not in guest.run("dmesg")
    return state


def load_state(guest: Guest) -> dict[str, int]:
    """Return the counts of optload: rounds, checks, errors, workers; empty before it has begun."""
    try:
        lines = guest.run("cat /run/optload").splitlines()
    except GuestCommandError:
        return {}
    pairs = (line.partition("=")[::2] for line in lines)
    return {name: int(value) for name, value in pairs if value.isdigit()}


def _checks(state: Mapping[str, int]) -> int:
    """Return how many results optload has checked."""
    return state.get("checks", 0)


def wait_bench(
    guest: Guest, names: Iterable[str], more: int = 1, module: str = "optbench"
) -> dict[str, tuple[int, int]]:
    """Wait until each of these scenarios has made that many calls more; return all counts."""
    before, names = bench_calls(guest, module), tuple(names)
    return wait_until(
        lambda: bench_calls(guest, module),
        f"{more} calls more of each of {names}",
        lambda now: all(now[name][0] - before[name][0] >= more for name in names),
    )


def bench_calls(guest: Guest, module: str = "optbench") -> dict[str, tuple[int, int]]:
    """Return the calls and the errors of each scenario of optbench, or of optseed."""
    counts = {}
    for line in guest.run(f"cat /proc/{module}").splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split())
        counts[fields["name"]] = (int(fields["calls"]), int(fields["errors"]))
    return counts
