"""The scenarios: every form of a site, every way between forms, every protocol and machine."""

from collections.abc import Iterator
from itertools import pairwise

from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.sites.scan import Site
from optpolined.patching.protocol.steps import Protocol
from optpolined.x86 import Register
from tests.model.daemon import Wanted, originals, thunk_site
from tests.model.explore import Crew
from tests.model.inline import inline_site
from tests.model.rules import Rules
from tests.model.scenarios import Scenario, site_scenario
from tests.model.world import F1, F2, F3, FUNCTIONS, LINE_END, PAGE_END, TEXT

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

INLINE_CALL = inline_site(LINE_END - 3, Register.RAX)
INLINE_CALL_CS = inline_site(TEXT + 8, Register.R9, prefix=True)
INLINE_TAIL = inline_site(TEXT + 8, Register.R11, SiteKind.JMP)
INLINE_SPLIT = inline_site(PAGE_END - 5, Register.RDX)
INLINE_SITES = {"inline call": INLINE_CALL, "inline tail": INLINE_TAIL}

ALONE = Crew(vcpus=1, sleepers=0)
PAIR = Crew(vcpus=1, sleepers=1)
"""Tasks share nothing but grace periods: what one of two may do wrong, it may do alone."""


def cycle(site: Site) -> list[Wanted]:
    """Thunk, learning stub, chain, another chain, thunk; and again, in blocks that were freed."""
    forms = (LEARNING, Chain((F1,)), Chain((F2, F1)))
    return [*({site.address: form} for form in forms), originals([site])]


def ways(site: Site) -> list[Wanted]:
    """Every way of an inline site, there and back.

    Learning, a head alone, a rest behind it, another head, head and rest swapped, hits counted,
    as built.
    """
    forms = (
        LEARNING,
        Chain((F1,)),
        Chain((F1, F2)),
        Chain((F3, F2)),
        Chain((F2, F3)),
        Chain((F2, F3), counts_hits=True),
    )
    return [*({site.address: form} for form in forms), originals([site])]


def short_ways(site: Site) -> list[tuple[Wanted, Wanted]]:
    """Each way of an inline site between two forms that :func:`ways` does not go."""
    one, other, two = Chain((F1,)), Chain((F2,)), Chain((F1, F2))
    steps: tuple[tuple[Form, Form], ...] = (
        (LEARNING, two),
        (one, other),
        (two, one),
        (two, Chain((F1, F3))),
        (one, LEARNING),
        (two, LEARNING),
        (Chain((F1,), counts_hits=True), one),
        (LEARNING, ORIGINAL),
        (one, ORIGINAL),
        (two, ORIGINAL),
        (ORIGINAL, two),
    )
    return [({site.address: before}, {site.address: after}) for before, after in steps]


def scenarios() -> Iterator[Scenario]:
    """What every run explores."""
    yield from _thunk_sites()
    yield from _blocks()
    yield from _batches()
    yield from _inline()
    yield from _inline_batches()


def deep_scenarios() -> Iterator[Scenario]:
    """Larger ones: more functions, more vCPUs, more tasks."""
    one = [CALL]
    all_three = (F1, F2, F3)
    counted = {CALL.address: Chain((F1, F2), counts_hits=True)}
    yield site_scenario("cycle, three functions", one, all_three, *cycle(CALL))
    yield site_scenario("cycle, live", one, (F1, F2), *cycle(CALL)[:3], rules=LIVE)
    yield site_scenario("cycle, dies", one, (F1, F2), *cycle(CALL), dies=True)
    yield site_scenario("counted hits", one, all_three, counted, originals(one))
    for site in THUNK_SITES.values():
        for crew in ((3, 1), (2, 2)):
            promoted = {site.address: Chain((F1,))}
            yield site_scenario("thunk site", [site], (F1, F2), promoted).with_crew(*crew)
    for crew in ((3, 0), (3, 1), (2, 2)):
        yield site_scenario("cycle twice", one, (F1,), *cycle(CALL) * 2).with_crew(*crew)
        heads: tuple[Wanted, ...] = tuple(
            {INLINE_CALL.address: Chain((head,))} for head in (F1, F2, F1)
        )
        yield site_scenario("inline", [INLINE_CALL], (F1,), *heads).with_crew(*crew)
    for name, site in (INLINE_SITES | {"inline cs call": INLINE_CALL_CS}).items():
        yield site_scenario(f"{name}, dies", [site], (F1,), *ways(site), dies=True, crew=PAIR)


def _thunk_sites() -> Iterator[Scenario]:
    for name, site in THUNK_SITES.items():
        one, called, promoted = [site], (F1, F2), {site.address: Chain((F1,))}
        yield site_scenario(f"{name}, live", one, called, promoted, rules=LIVE)
        for protocol in Protocol:
            yield site_scenario(
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
        yield site_scenario(
            f"cycle twice, {protocol.value}", one, (F1,), *cycle(CALL) * 2, protocol=protocol
        )
    yield site_scenario("cycle, hits and misses", one, (F1, F2), *cycle(CALL))
    yield site_scenario("cycle, live", one, (F1,), *cycle(CALL), rules=LIVE)
    yield site_scenario("cycle, dies", one, (F1,), *cycle(CALL), dies=True)
    counted = {CALL.address: Chain((F1,), counts_hits=True)}
    yield site_scenario("counted hits", one, (F1, F2), counted, originals(one))


def _batches() -> Iterator[Scenario]:
    promoted = {CALL.address: Chain((F1,)), FAR_JMP.address: Chain((F2,))}
    three = promoted | {FAR_CALL.address: LEARNING}
    both, all_three = [CALL, FAR_JMP], [CALL, FAR_JMP, FAR_CALL]
    yield site_scenario("three sites at once", all_three, (F1,), three)
    yield site_scenario("two sites, dies", both, (F1,), promoted, originals(both), dies=True)
    yield site_scenario(
        "a site, dies, and the next daemon uses the arena",
        [CALL],
        (F1, F2),
        {CALL.address: Chain((F1,))},
        dies=True,
        then={CALL.address: Chain((F2,))},
    )


def _inline() -> Iterator[Scenario]:
    for name, site in INLINE_SITES.items():
        one = [site]
        for protocol in Protocol:
            yield site_scenario(
                f"{name}, {protocol.value}, dies",
                one,
                (F1, F2),
                *ways(site),
                protocol=protocol,
                dies=True,
                crew=ALONE,
            )
        yield site_scenario(name, one, (F1, F2), *ways(site), crew=PAIR)
        steps = [*pairwise([originals(one), *ways(site)]), *short_ways(site)]
        for before, after in steps:
            way = f"{name}, {_shown(before)} to {_shown(after)}"
            yield site_scenario(way, one, (F1,), after, settled=before)
            yield site_scenario(
                f"{way}, live", one, (F1, F2), after, settled=before, rules=LIVE, crew=PAIR
            )
    prefixed = INLINE_CALL_CS
    yield site_scenario(
        "inline cs call, dies", [prefixed], (F1, F2), *ways(prefixed), dies=True, crew=ALONE
    )


def _inline_batches() -> Iterator[Scenario]:
    call, tail = INLINE_CALL.address, INLINE_TAIL.address
    both = [INLINE_CALL, INLINE_TAIL]
    forms = (
        {call: Chain((F1, F2)), tail: LEARNING},
        {call: LEARNING, tail: Chain((F1, F2))},
        {call: Chain((F2,)), tail: Chain((F2, F1))},
    )
    yield site_scenario("two inline sites", both, (F1,), *forms, crew=PAIR)
    yield site_scenario(
        "two inline sites, dies",
        both,
        (F1,),
        {call: Chain((F2,)), tail: Chain((F1,))},
        settled={call: Chain((F1,)), tail: LEARNING},
        dies=True,
        crew=ALONE,
    )
    yield site_scenario(
        "an inline site, dies, and the next daemon learns another function",
        [INLINE_CALL],
        (F1, F2),
        {call: Chain((F1,))},
        dies=True,
        then={call: Chain((F2,))},
        crew=ALONE,
    )


def _shown(wanted: Wanted) -> str:
    """The form of the one site, in short."""
    (form,) = wanted.values()
    if not isinstance(form, Chain):
        return "original"
    targets = " ".join(FUNCTIONS[target] for target in form.targets) or "learning"
    return f"counted {targets}" if form.counts_hits else targets
