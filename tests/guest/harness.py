"""What the tests that patch a guest have in common."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guest.image.boot import Guest
from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL
from optpolined.config import GuestConfig, PokeConfig, QemuConfig, Settings
from optpolined.kernel.sites.scan import Site
from optpolined.session.attach import attach
from optpolined.session.link import connect
from optpolined.session.session import Session

__all__ = (
    "bench_calls",
    "config_of",
    "load_state",
    "open_session",
    "site_in",
    "sites_called",
    "write_config",
)


def config_of(guest: Guest, **poke: object) -> GuestConfig:
    """The settings with which a test attaches to ``guest``."""
    return GuestConfig(
        qemu=QemuConfig(qmp_socket=guest.qmp),
        poke=PokeConfig.model_validate(poke),
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
    """Attach, and put everything back at the end; the text must then be what it was."""
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
    """The one site in a function of the guest."""
    (site,) = (
        site for site in session.survey.inventory.eligible.values() if site.function == function
    )
    return site


def sites_called(session: Session, seconds: float) -> list[GuestVirtual]:
    """The eligible sites by the number of calls in ``seconds``, most first; all learn meanwhile."""
    eligible = session.survey.inventory.eligible
    session.apply(dict.fromkeys(eligible, LEARNING))
    time.sleep(seconds)
    counts = session.count()
    session.apply(dict.fromkeys(eligible, ORIGINAL))
    calls = {site: sum(gain.calls.values()) + gain.other for site, gain in counts.items()}
    return sorted(calls, key=lambda site: -calls[site])


def load_state(guest: Guest) -> dict[str, int]:
    """The counts of optload: rounds, checks, errors, workers."""
    lines = guest.run("cat /run/optload").splitlines()
    pairs = (line.partition("=")[::2] for line in lines)
    return {name: int(value) for name, value in pairs if value.isdigit()}


def bench_calls(guest: Guest, module: str = "optbench") -> dict[str, tuple[int, int]]:
    """The calls and the errors of each scenario of optbench, or of optseed."""
    counts = {}
    for line in guest.run(f"cat /proc/{module}").splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split())
        counts[fields["name"]] = (int(fields["calls"]), int(fields["errors"]))
    return counts
