"""Which calls are made while the daemon does what: everything that a search needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import site_instruction
from optpolined.codegen.forms import Key
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.sites.scan import Site
from optpolined.patching.protocol.steps import Protocol
from tests.model.cpu import Cpu
from tests.model.daemon import Wanted, program, record_offset, recovery
from tests.model.explore import Crew, Explorer
from tests.model.inline import code_of
from tests.model.listing import Listing
from tests.model.rules import Rules, Violation
from tests.model.tally import Tally
from tests.model.task import Call, CallSite
from tests.model.timeline import Program, Timeline
from tests.model.world import FUNCTIONS, fresh_image, in_arena


@dataclass(frozen=True)
class Scenario:
    """A program on a guest, and the calls that its tasks make.

    ``plan`` completes the listing of what may be executed, once it is known which blocks the
    program writes.
    """

    name: str
    image: bytes
    calls: tuple[Call, ...]
    program: Program
    recover: Program | None
    plan: Callable[[Listing, Timeline], None]
    rules: Rules
    crew: Crew = field(default_factory=Crew)

    def explore(self) -> int:
        """Visit every state; answer how many.

        :raise Violation: a property does not hold.
        """
        timeline = Timeline(self.image, self.program, self.recover, self.rules)
        listing = Listing()
        self.plan(listing, timeline)
        cpu = Cpu(listing, self.calls, self.rules.handler)
        return Explorer(timeline, cpu, self.rules, self.crew).run()

    def check(self, tally: Tally) -> None:
        """Explore; a violation fails the test that runs."""
        try:
            tally.states += self.explore()
        except Violation as violation:
            tally.violations += 1
            pytest.fail(str(violation), pytrace=False)

    def with_crew(self, vcpus: int, sleepers: int) -> "Scenario":
        """The same with other numbers of vCPUs and of tasks that wait for one."""
        crew = Crew(vcpus, sleepers)
        return replace(self, crew=crew, name=f"{self.name}, {vcpus} vCPUs, {sleepers} asleep")


def site_scenario(
    name: str,
    sites: Sequence[Site],
    functions: Sequence[GuestVirtual],
    *wanted: Wanted,
    protocol: Protocol = Protocol.BREAKPOINT,
    dies: bool = False,
    settled: Wanted | None = None,
    then: Wanted | None = None,
    key: Key | None = None,
    keys: Sequence[int] = (0,),
    rules: Rules | None = None,
    crew: Crew | None = None,
) -> Scenario:
    """Sites that get the ``wanted`` forms one after the other, called with ``functions``.

    They have those of ``settled`` before the first call.  With ``dies``, the daemon may die after
    every moment, and the next one puts all back; ``then`` is what that one goes on to do.  One site
    may have a ``key``; its register holds any of ``keys``.
    """
    image = fresh_image([code_of(site) for site in sites])

    def plan(listing: Listing, timeline: Timeline) -> None:
        blocks = [write for write in timeline.writes if in_arena(write.address)]
        for block in blocks:
            listing.add(block.address, block.data)
        for site in sites:
            _list_inline_part(listing, site)
            listing.add_breakpoint(site.address)
            listing.add(site.address, site.original)
            for block in blocks:
                listing.add(
                    site.address, site_instruction(site.original, site.address, block.address)
                )

    return Scenario(
        name=name,
        image=image,
        calls=tuple(
            Call(_call_site(site, number, key, len(sites)), function, held)
            for number, site in enumerate(sites)
            for function in functions
            for held in keys
        ),
        program=program(sites, protocol, *wanted, settled=settled),
        recover=recovery(image, sites, then) if dies else None,
        plan=plan,
        rules=rules or Rules(),
        crew=crew or Crew(),
    )


def _list_inline_part(listing: Listing, site: Site) -> None:
    """Its compare may hold a breakpoint; its branch never does."""
    if site.inline is not None:
        listing.add_breakpoint(site.inline.compare)
        for head in (None, *FUNCTIONS):
            listing.add(*code_of(site, head))


def _call_site(site: Site, record: int, key: Key | None, key_table: int) -> CallSite:
    end = site.address + site.length
    returns = {end}
    entry = site.address
    if site.inline is not None:
        entry = site.inline.compare
        returns.add(site.inline.branch + len(site.inline.unlearned_branch))
    return CallSite(
        entry=entry,
        register=site.register,
        is_call=site.kind is SiteKind.CALL,
        returns=frozenset(returns),
        done=end,
        record=record_offset(record),
        key=key,
        key_table=record_offset(key_table),
    )
