"""Boots the loaded guest that the rows work on, and reads its counts."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from guest.image.boot import Guest
from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import Assembler, branch_target
from optpolined.codegen.decode import BLOCK_BYTES_MAX, Decoder
from optpolined.codegen.forms import Code, Form
from optpolined.config import GuestConfig, LearningConfig, PolicyConfig, QemuConfig, Settings
from optpolined.kernel.sites.scan import Site
from optpolined.session.attach import attach
from optpolined.session.link import connect
from optpolined.session.session import Session

__all__ = ("PATIENCE_SECONDS", "Bench", "Tally", "attached", "settings", "tally")

_LOOK_SECONDS = 1.5
_CALLS_MIN = 1000

PATIENCE_SECONDS = 120.0
"""The deadline of every wait.  It is generous because the machine may be busy with other work."""


def settings(
    guest: Guest,
    *,
    policy: PolicyConfig | None = None,
    learning: LearningConfig | None = None,
) -> GuestConfig:
    """Return the daemon's settings for ``guest``."""
    return GuestConfig(
        qemu=QemuConfig(qmp_socket=guest.qmp),
        policy=policy or PolicyConfig(),
        learning=learning or LearningConfig(),
        runtime_directory=guest.directory / "run",
    )


@dataclass(frozen=True, slots=True)
class Tally:
    """The guest's own checks of one scenario: how many results, and how many were wrong."""

    calls: int
    errors: int

    def since(self, before: "Tally") -> "Tally":
        """Return what was added since ``before``."""
        return Tally(self.calls - before.calls, self.errors - before.errors)


def tally(guest: Guest, module: str, scenario: str) -> Tally:
    """Read the checks of one scenario of optbench or optseed; ``total`` is all of them."""
    for line in guest.run(f"cat /proc/{module}").splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split())
        if fields.get("name") == scenario:
            return Tally(int(fields["calls"]), int(fields["errors"]))
    raise LookupError(f"{module} has no scenario {scenario}")


class Bench:
    """An attached guest with its scenarios running."""

    def __init__(self, guest: Guest, session: Session) -> None:
        self.guest = guest
        self.session = session
        self._decoder = Decoder(Assembler())

    def tally(self, module: str, scenario: str) -> Tally:
        """Call :func:`tally`."""
        return tally(self.guest, module, scenario)

    def sites(self, module: str, scenario: str) -> list[Site]:
        """Return the sites in the function of a scenario."""
        function = f"{module}_{scenario}"
        return [
            site
            for site in self.session.survey.inventory.eligible.values()
            if site.module == module and site.function.partition(".")[0] == function
        ]

    def learned(
        self, sites: Mapping[GuestVirtual, Form], seconds: float = _LOOK_SECONDS
    ) -> dict[GuestVirtual, list[GuestVirtual]]:
        """Give the sites these forms; return the targets of each site, most called first.

        This takes ``seconds``, and longer where a site is not called often enough in that time.
        """
        self.session.apply(sites)
        called: dict[GuestVirtual, Counter[GuestVirtual]] = {}
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            time.sleep(seconds)
            for site, gain in self.session.counters.count().items():
                if site in sites:
                    called.setdefault(site, Counter()).update(gain.calls)
            enough = [site for site, calls in called.items() if calls.total() >= _CALLS_MIN]
            if len(enough) == len(sites) or time.monotonic() > end:
                return {
                    site: [target for target, _ in calls.most_common()]
                    for site, calls in called.items()
                }

    def missed_share(self, module: str, scenarios: Sequence[str]) -> float:
        """Count for some seconds which share of the calls of these scenarios misses.

        The guest counts the calls meanwhile, because their rate changes.
        """
        sites = [site.address for name in scenarios for site in self.sites(module, name)]
        began = time.monotonic()
        before = [self.tally(module, name) for name in scenarios]
        self.session.counters.count()
        # Calls made while the tallies are read must be few beside those made meanwhile.
        time.sleep(max(_LOOK_SECONDS, 10 * (time.monotonic() - began)))
        counts = self.session.counters.count()
        calls = sum(
            self.tally(module, name).since(tally).calls
            for name, tally in zip(scenarios, before, strict=True)
        )
        missed = sum(
            sum(counts[site].calls.values()) + counts[site].other
            for site in sites
            if site in counts
        )
        return missed / max(1, calls)

    def block(self, site: Site) -> Code | None:
        """Decode the block behind a site from guest memory; ``None`` if it calls its thunk."""
        session = self.session
        target = self.block_address(site)
        if target is None:
            return None
        stubs = {address: register for register, address in session.header.learn_stub.items()}
        room = session.arena.base + session.arena.size - target
        code = session.space.read(target, min(BLOCK_BYTES_MAX, room))
        return self._decoder.decode_block(code, target, stubs).form

    def block_address(self, site: Site) -> GuestVirtual | None:
        """Return where a site's branch goes now; ``None`` if it goes to its thunk."""
        found = self.session.space.read(site.address, site.length)
        return None if found == site.original else branch_target(found, site.address)

    def names(self, targets: Sequence[GuestVirtual]) -> list[str]:
        """Return the names of functions."""
        return [self.session.survey.symbols.name(target) for target in targets]


@contextmanager
def attached(guest: Guest, config: GuestConfig) -> Iterator[Bench]:
    """Attach to ``guest``; at the end, put everything back, or raise."""
    with (
        connect(config) as link,
        attach(link, Settings(config), time.monotonic, force=False) as session,
    ):
        try:
            yield Bench(guest, session)
        finally:
            differences = session.restore()
        if differences:
            raise AssertionError(f"the text differs after detach: {differences[0]}")
