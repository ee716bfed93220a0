"""The scenarios of forms that look at a key: right ones, lying ones, and ones without a leaf."""

from collections.abc import Iterator
from itertools import pairwise

from optpolined.codegen.forms import LEARNING, Chain, Form, Key, Keyed, LearnKeys, Tree
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.sites.scan import Site
from optpolined.patching.protocol.steps import Protocol
from optpolined.x86 import Register
from tests.model.daemon import Wanted, originals, thunk_site
from tests.model.explore import Crew
from tests.model.inline import inline_site
from tests.model.rules import Rules
from tests.model.scenarios import Scenario, site_scenario
from tests.model.world import F1, F2, F3, LINE_END

_LIVE = Rules(live=True)
_ALONE = Crew(vcpus=1, sleepers=0)
_PAIR = Crew(vcpus=1, sleepers=1)

KEYED_CALL = thunk_site(LINE_END - 2, Register.RAX)
KEYED_JMP = thunk_site(LINE_END - 3, Register.R11, SiteKind.JMP)
KEYED_INLINE = inline_site(LINE_END - 3, Register.RBX)

BASE_KEY = Key(Register.RCX, shift=1, bits=2)
"""For a site whose target is in rax: the block that learns keys uses rcx itself."""

SCRATCH_KEY = Key(Register.R10, shift=0, bits=2)
"""For a site whose target is in r11: every block that counts uses r10 itself."""

INLINE_KEY = Key(Register.RAX, shift=3, bits=1)


def held(key: Key, *indices: int) -> list[int]:
    """Return what the key's register holds for some indices, among bits that mean nothing."""
    return [0xF << 40 | 1 << key.shift + key.bits | index << key.shift for index in indices]


def keyed_ways(site: Site, key: Key) -> list[Wanted]:
    """Every way of a keyed site: keys learned, found, found elsewhere, trees, a chain, as built."""
    last = (1 << key.bits) - 1
    return _ways(
        site,
        LearnKeys(key),
        Keyed(key, ((0, F1), (last, F2))),
        Keyed(key, ((0, F2),)),
        Tree((F1, F2, F3)),
        Chain((F1,)),
        LearnKeys(key),
        LEARNING,
    )


def inline_ways(site: Site, key: Key) -> list[Wanted]:
    """Of an inline site, where a form that looks at a key hides the inline part."""
    keyed, other = Keyed(key, ((0, F1), (1, F2))), Keyed(key, ((0, F2),))
    return _ways(site, LearnKeys(key), keyed, Chain((F1,)), other)


def reuse(site: Site, key: Key) -> list[Wanted]:
    """Blocks come to stand where others stood."""
    first, second = Keyed(key, ((0, F1),)), Keyed(key, ((0, F2), (1, F1)))
    return _ways(site, LearnKeys(key), first, second, LearnKeys(key), second)


def _ways(site: Site, *forms: Form) -> list[Wanted]:
    return [*({site.address: form} for form in forms), originals([site])]


SITES = {
    "keyed call": (KEYED_CALL, BASE_KEY, keyed_ways(KEYED_CALL, BASE_KEY)),
    "keyed jmp": (KEYED_JMP, SCRATCH_KEY, keyed_ways(KEYED_JMP, SCRATCH_KEY)),
    "keyed inline call": (KEYED_INLINE, INLINE_KEY, inline_ways(KEYED_INLINE, INLINE_KEY)),
}
_RUNS = {
    "keyed call": Protocol.BREAKPOINT,
    "keyed jmp": Protocol.STOPPED,
    "keyed inline call": Protocol.BREAKPOINT,
}


def keyed_scenarios() -> Iterator[Scenario]:
    """What every run explores."""
    for name, protocol in _RUNS.items():
        yield _dies(name, protocol)
        site, key, ways = SITES[name]
        for step, (before, after) in enumerate(pairwise([originals([site]), *ways])):
            yield site_scenario(
                f"{name}, step {step}, live",
                [site],
                (F1, F2),
                after,
                settled=before,
                key=key,
                keys=_keys(key),
                rules=_LIVE,
                crew=_ALONE,
            )
    yield keyed_reuse()


def keyed_reuse(rules: Rules | None = None) -> Scenario:
    """A task may sleep in any block while others of the site come and go."""
    return site_scenario(
        "keyed blocks are used again",
        [KEYED_CALL],
        (F1,),
        *reuse(KEYED_CALL, BASE_KEY),
        key=BASE_KEY,
        keys=held(BASE_KEY, 0),
        rules=rules,
        crew=_PAIR,
    )


def deep_keyed_scenarios() -> Iterator[Scenario]:
    """Larger ones."""
    for name, (site, key, ways) in SITES.items():
        keys = _keys(key)
        yield site_scenario(name, [site], (F1, F2), *ways, key=key, keys=keys, crew=_PAIR)
        for protocol in (other for other in Protocol if other is not _RUNS[name]):
            yield _dies(name, protocol)


def _dies(name: str, protocol: Protocol) -> Scenario:
    site, key, ways = SITES[name]
    return site_scenario(
        f"{name}, {protocol.value}, dies",
        [site],
        (F1, F2),
        *ways,
        key=key,
        keys=_keys(key),
        protocol=protocol,
        dies=True,
        crew=_ALONE,
    )


def _keys(key: Key) -> list[int]:
    """Return two keys that have leaves, and one between them that has no leaf, if it exists."""
    last = (1 << key.bits) - 1
    return held(key, *sorted({0, 1, last}))
