"""The scenarios: every form of a site, every way between forms, every protocol and machine."""

from collections.abc import Iterator

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, Chain
from optpolined.kernel.abi import SiteKind
from optpolined.kernel.sites import Site
from optpolined.poke.protocol import Protocol
from optpolined.x86 import Register
from tests.model.daemon import Wanted, originals, thunk_site
from tests.model.inline import InlineSite, inline_sites
from tests.model.rules import Rules
from tests.model.scenarios import Scenario, thunk_sites
from tests.model.world import F1, F2, F3, LINE_END, PAGE_END, TEXT

LIVE = Rules(live=True)

CALL = thunk_site(LINE_END - 2, Register.RAX)
CALL_CS = thunk_site(LINE_END - 1, Register.RBX, prefix=True)
JMP = thunk_site(LINE_END - 3, Register.R11, SiteKind.JMP)
JMP_CS = thunk_site(LINE_END - 4, Register.R10, SiteKind.JMP, prefix=True)
SPLIT = thunk_site(PAGE_END - 3, Register.RDX)
"""Its bytes stand in two pages that are no neighbours."""

THUNK_SITES = {"call": CALL, "cs call": CALL_CS, "jmp": JMP, "cs jmp": JMP_CS}
"""5 and 6 bytes, each across a cache line."""

FAR_CALL = thunk_site(TEXT + 16, Register.R9)
FAR_JMP = thunk_site(TEXT + 24, Register.RSI, SiteKind.JMP)

INLINE_CALL = InlineSite(GuestVirtual(LINE_END - 3), Register.RAX, is_call=True)
INLINE_TAIL = InlineSite(GuestVirtual(TEXT + 8), Register.R11, is_call=False)


def cycle(site: Site) -> list[Wanted]:
    """Thunk, learning stub, chain, another chain, thunk; and again, in blocks that were freed."""
    forms = (LEARNING, Chain((F1,)), Chain((F2, F1)))
    return [*({site.address: form} for form in forms), originals([site])]


def scenarios() -> Iterator[Scenario]:
    """What every run explores."""
    yield from _thunk_sites()
    yield from _blocks()
    yield from _batches()
    yield from _inline()


def deep_scenarios() -> Iterator[Scenario]:
    """Larger ones: more functions, more vCPUs, more tasks."""
    one = [CALL]
    all_three = (F1, F2, F3)
    counted = {CALL.address: Chain((F1, F2), counts_hits=True)}
    yield thunk_sites("cycle, three functions", one, all_three, *cycle(CALL))
    yield thunk_sites("cycle, live", one, (F1, F2), *cycle(CALL)[:3], rules=LIVE)
    yield thunk_sites("cycle, dies", one, (F1, F2), *cycle(CALL), dies=True)
    yield thunk_sites("counted hits", one, all_three, counted, originals(one))
    for site in THUNK_SITES.values():
        for crew in ((3, 1), (2, 2)):
            promoted = {site.address: Chain((F1,))}
            yield thunk_sites("thunk site", [site], (F1, F2), promoted).with_crew(*crew)
    for crew in ((3, 0), (3, 1), (2, 2)):
        yield thunk_sites("cycle twice", one, (F1,), *cycle(CALL) * 2).with_crew(*crew)
        yield inline_sites("inline", [INLINE_CALL], (F1,), [F1], [F2], [F1]).with_crew(*crew)


def _thunk_sites() -> Iterator[Scenario]:
    for name, site in THUNK_SITES.items():
        one, called, promoted = [site], (F1, F2), {site.address: Chain((F1,))}
        yield thunk_sites(f"{name}, live", one, called, promoted, rules=LIVE)
        for protocol in Protocol:
            yield thunk_sites(
                f"{name}, {protocol.value}, dies",
                one,
                called,
                promoted,
                originals(one),
                protocol=protocol,
                dies=True,
            )


def _blocks() -> Iterator[Scenario]:
    one = [CALL]
    for protocol in Protocol:
        yield thunk_sites(
            f"cycle twice, {protocol.value}", one, (F1,), *cycle(CALL) * 2, protocol=protocol
        )
    yield thunk_sites("cycle, hits and misses", one, (F1, F2), *cycle(CALL))
    yield thunk_sites("cycle, live", one, (F1,), *cycle(CALL), rules=LIVE)
    yield thunk_sites("cycle, dies", one, (F1,), *cycle(CALL), dies=True)
    counted = {CALL.address: Chain((F1,), counts_hits=True)}
    yield thunk_sites("counted hits", one, (F1, F2), counted, originals(one))


def _batches() -> Iterator[Scenario]:
    promoted = {CALL.address: Chain((F1,)), FAR_JMP.address: Chain((F2,))}
    three = promoted | {FAR_CALL.address: LEARNING}
    both, all_three = [CALL, FAR_JMP], [CALL, FAR_JMP, FAR_CALL]
    yield thunk_sites("three sites at once", all_three, (F1,), three)
    yield thunk_sites("two sites, dies", both, (F1,), promoted, originals(both), dies=True)
    yield thunk_sites(
        "a site, dies, and the next daemon uses the arena",
        [CALL],
        (F1, F2),
        {CALL.address: Chain((F1,))},
        dies=True,
        then={CALL.address: Chain((F2,))},
    )


def _inline() -> Iterator[Scenario]:
    transitions: tuple[list[GuestVirtual | None], ...] = ([F1], [F2], [None], [F2])
    for name, site in (("call", INLINE_CALL), ("tail", INLINE_TAIL)):
        one = [site]
        yield inline_sites(f"inline {name}, live", one, (F1,), *transitions, rules=LIVE)
        for protocol in Protocol:
            yield inline_sites(
                f"inline {name}, {protocol.value}, dies",
                one,
                (F1, F2),
                *transitions,
                protocol=protocol,
                dies=True,
            )
    yield inline_sites("inline, three functions", [INLINE_TAIL], (F1, F2, F3), *transitions)
    yield inline_sites(
        "two inline sites", [INLINE_CALL, INLINE_TAIL], (F1,), [F1, None], [F2, F1], [None, F2]
    )
