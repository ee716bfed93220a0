"""Boots the loaded guest that the rows work on, and reads its counts."""

import time
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

__all__ = ("Bench", "Tally", "attached", "settings", "tally")

_LOOK_SECONDS = 1.5


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
        """Give the sites these forms; return the targets of each site, most called first."""
        self.session.apply(sites)
        time.sleep(seconds)
        counts = self.session.counters.count()
        return {
            site: sorted(counts[site].calls, key=lambda target: -counts[site].calls[target])
            for site in sites
            if site in counts
        }

    def missed_share(self, sites: Mapping[GuestVirtual, float], seconds: float) -> float:
        """Count misses for ``seconds``; return them as a share of these calls a second."""
        self.session.counters.count()
        time.sleep(seconds)
        counts = self.session.counters.count()
        missed = sum(
            sum(counts[site].calls.values()) + counts[site].other
            for site in sites
            if site in counts
        )
        return missed / max(1.0, seconds * sum(sites.values()))

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
        """Return the addresses of functions."""
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
