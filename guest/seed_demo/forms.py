"""The rows that put one form into the guest and observe it there."""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from guest.seed_demo.bench import PATIENCE_SECONDS, Bench, Tally
from guest.seed_demo.rows import Row, row
from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, Chain, Form, Keyed, LearnKeys, Tree
from optpolined.kernel.sites.scan import Site
from optpolined.patching.inline_sites import Found, standing_head

__all__ = ("arena_reuse", "inline", "keyed_tree", "out_of_line", "static_calls", "tree_by_target")

_MISSED_MAX = 0.02
_LIES_MISSED_MAX = 0.5
"""One call of eight lies, and so does about one leaf of eight, which keeps the last target."""
_ROUNDS = 40
_RETARGETS = 20
_STATIC_CALLS = {
    "inline": ("static_inline", "static_inline_tail", "static_inline_event"),
    "trampoline": ("static_outline", "static_outline_tail", "static_outline_event"),
}
"""The scenarios of each way to make a static call."""


def inline(bench: Bench) -> Row:
    """Test sites of the plugin: the hottest target becomes an immediate and a direct call."""
    scenarios = ("call_1", "call_2_skewed", "tail_1", "tail_2_skewed")
    sites = [site for name in scenarios for site in bench.sites("optseed", name) if site.inline]
    before = bench.tally("optseed", "total")
    targets = bench.learned({site.address: LEARNING for site in sites})
    forms = {site: Chain(tuple(called[:2])) for site, called in targets.items()}
    bench.session.apply(forms)
    found = bench.session.look()
    heads = {site.address: _head(bench, site) for site in sites}
    missed = bench.missed_share("optseed", scenarios)
    checked = bench.tally("optseed", "total").since(before)
    return row(
        "optpoline inline by plugin",
        {
            "the compare holds the hottest target, the call goes there": len(sites)
            >= len(scenarios)
            and all(heads[site] == form.targets[0] for site, form in forms.items()),
            "the forms in the text are those that were asked for": _all_stand(forms, found),
            "calls are direct": bool(forms) and missed < _MISSED_MAX,
            **_right(checked),
        },
        sites=len(sites),
        targets={bench.names([site])[0]: bench.names(called) for site, called in targets.items()},
        missed_share=missed,
        results_checked=checked.calls,
    )


def out_of_line(bench: Bench) -> Row:
    """Test thunk sites of unchanged code: they get a chain of several targets in the arena."""
    scenarios = ("call_2_random", "call_4_random", "tail_4_random")
    return _chosen(bench, "optpoline out of line with several targets", scenarios, _chain)


def tree_by_target(bench: Bench) -> Row:
    """Test a tree over the addresses of 16 targets, more than a record has slots."""
    return _chosen(bench, "tree by target", ("call_4_random", "tail_4_random"), _tree)


def keyed_tree(bench: Bench) -> Row:
    """Test the mail's call_table: bits of an argument find the handler; its address is checked."""
    scenarios = ("keyed_random", "keyed_tail", "keyed_lies", "keyed_pointer")
    sites = {name: bench.sites("optseed", name)[0] for name in scenarios}
    before = bench.tally("optseed", "total")
    learn = {site.address: LearnKeys(site.key) for site in sites.values() if site.key}
    bench.learned(learn)
    forms: dict[GuestVirtual, Keyed] = {}
    for site in sites.values():
        leaves = bench.session.counters.key_targets(site.address)
        if site.key and leaves:
            forms[site.address] = Keyed(site.key, tuple(leaves.items()))
    bench.session.apply(forms)
    found = bench.session.look()
    missed = {name: bench.missed_share("optseed", [name]) for name in scenarios}
    checked = bench.tally("optseed", "total").since(before)
    honest = [share for name, share in missed.items() if name != "keyed_lies"]
    return row(
        "keyed tree",
        {
            "every site has a tree, decoded from the guest's memory": len(forms) == len(sites)
            and all(bench.block(site) == forms.get(site.address) for site in sites.values()),
            "the forms in the text are those that were asked for": _all_stand(forms, found),
            "16 handlers were found by keys that tell the truth": all(
                len(set(forms[site.address].targets)) == 16
                for name, site in sites.items()
                if name != "keyed_lies" and site.address in forms
            ),
            "calls are direct": max(honest) < _MISSED_MAX,
            "a key that lies costs time only": 0 < missed["keyed_lies"] < _LIES_MISSED_MAX,
            **_right(checked),
        },
        keys={name: str(site.key) for name, site in sites.items()},
        missed_shares=missed,
        results_checked=checked.calls,
    )


def arena_reuse(bench: Bench) -> Row:
    """Make and retire blocks again and again in an arena that does not grow."""
    sites = bench.sites("optbench", "call_1") + bench.sites("optbench", "call_2_random")
    targets = bench.learned({site.address: LEARNING for site in sites})
    before = bench.tally("optbench", "total")
    places: list[GuestVirtual] = []
    used = []
    end = time.monotonic() + PATIENCE_SECONDS
    for turn in count():
        # A busy guest takes its time for a grace period.
        came_back = len(set(places)) < len(places)
        if turn >= _ROUNDS and (came_back or time.monotonic() > end):
            break
        chain = {site: Chain(_turned(called[:2], turn)) for site, called in targets.items()}
        bench.session.apply(chain)
        bench.session.look()
        places += [block for site in sites if (block := bench.block_address(site)) is not None]
        bench.session.recycle()
        used.append(bench.session.arena.usage().used)
        time.sleep(0.05)
    checked = bench.tally("optbench", "total").since(before)
    usage = bench.session.arena.usage()
    return row(
        "blocks from a dynamic arena, reused",
        {
            "addresses came back": len(set(places)) < len(places),
            "the books balance": usage.used + usage.retired + usage.free
            == bench.session.arena.size,
            "what is in use does not grow": len(set(used[2:])) == 1,
            **_right(checked),
        },
        blocks_made=len(places),
        places_used=len(set(places)),
        results_checked=checked.calls,
    )


def static_calls(bench: Bench) -> list[Row]:
    """Point keys at one function after the other, and at none, while they are called."""
    calls = bench.session.static_calls
    before = bench.tally("optseed", "total")
    reached: dict[str, set[str]] = {}
    numbers = {f"optseed_number_{number}" for number in range(4)}
    events = {f"optseed_event_{number}" for number in range(4)} | {"none"}
    wanted = {
        place: events if place.endswith("event") else numbers
        for places in _STATIC_CALLS.values()
        for place in places
    }
    retargets = 0
    end = time.monotonic() + PATIENCE_SECONDS
    for turn in count():
        # A call of a busy guest may not run before the next target is set.
        is_done = all(reached.get(place) == targets for place, targets in wanted.items())
        if turn >= _RETARGETS and (is_done or time.monotonic() > end):
            break
        _point(bench, "optseed_number", f"optseed_number_{turn % 4}")
        _point(bench, "optseed_event", f"optseed_event_{turn % 5}" if turn % 5 < 4 else None)
        retargets += 2
        for scenario, target, calls_made in _static_counts(bench):
            if calls_made:
                reached.setdefault(scenario, set()).add(target)
    shown = {key.key: key for key in calls.list()}
    checked = bench.tally("optseed", "total").since(before)
    rows = []
    for name, places in _STATIC_CALLS.items():
        rows.append(
            row(
                f"static call {name}",
                {
                    "every target was reached, the empty one too": all(
                        reached.get(place) == wanted[place] for place in places
                    ),
                    "the keys are there, with their sites": shown["optseed_number"].sites > 0,
                    **_right(checked),
                },
                reached={place: sorted(reached.get(place, ())) for place in places},
                retargets=retargets,
                results_checked=checked.calls,
            )
        )
    return rows


def _point(bench: Bench, key: str, function: str | None) -> None:
    """Point a key at a function; from then on its calls may reach only that function."""
    new = function or "none"
    (old,) = [seen.target for seen in bench.session.static_calls.list() if seen.key == key]
    old = old.partition(" ")[0] or "none"
    bench.guest.run(f"echo {key} {old} {new} >/proc/optseed_static")
    bench.session.static_calls.set(key, function)
    bench.guest.run(f"echo {key} {new} >/proc/optseed_static")


def _static_counts(bench: Bench) -> list[tuple[str, str, int]]:
    """Return what each static call reached: scenario, target, calls."""
    counts = []
    for line in bench.guest.run("cat /proc/optseed_static").splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split())
        counts.append((fields["name"], fields["target"], int(fields["calls"])))
    return counts


def _chain(targets: Sequence[GuestVirtual]) -> Form:
    return Chain(tuple(targets[:4]))


def _tree(targets: Sequence[GuestVirtual]) -> Form:
    return Tree(tuple(targets))


def _chosen(
    bench: Bench,
    name: str,
    scenarios: Sequence[str],
    form_of: Callable[[Sequence[GuestVirtual]], Form],
) -> Row:
    """Return a row for sites of optbench, out of line, whose form has all their targets."""
    sites = [site for name in scenarios for site in bench.sites("optbench", name)]
    before = bench.tally("optbench", "total")
    targets = bench.learned({site.address: LEARNING for site in sites})
    forms = {site: form_of(called) for site, called in targets.items()}
    bench.session.apply(forms)
    found = bench.session.look()
    missed = bench.missed_share("optbench", scenarios)
    checked = bench.tally("optbench", "total").since(before)
    blocks = {site.address: bench.block(site) for site in sites}
    return row(
        name,
        {
            "every site has its form, decoded from the guest's memory": bool(forms)
            and all(blocks[site] == form for site, form in forms.items()),
            "the forms in the text are those that were asked for": _all_stand(forms, found),
            "there are several targets": all(len(called) > 1 for called in targets.values()),
            "calls are direct": missed < _MISSED_MAX,
            **_right(checked),
        },
        targets={bench.names([site])[0]: bench.names(called) for site, called in targets.items()},
        missed_share=missed,
        results_checked=checked.calls,
    )


def _head(bench: Bench, site: Site) -> GuestVirtual | None:
    """Read from the guest's text what the inline part of a site compares with and calls."""
    if site.inline is None:
        return None
    with bench.session.space.snapshot() as pages:
        head = standing_head(site.inline, pages)
    return None if head is None or head.hidden else head.target


def _all_stand(wanted: Mapping[GuestVirtual, Form], found: Mapping[GuestVirtual, Found]) -> bool:
    return bool(wanted) and all(found.get(site) == form for site, form in wanted.items())


def _right(checked: Tally) -> dict[str, bool]:
    return {"the guest's results are right": checked.errors == 0 and checked.calls > 0}


def _turned(targets: Sequence[GuestVirtual], turn: int) -> tuple[GuestVirtual, ...]:
    first = turn % len(targets)
    return (*targets[first:], *targets[:first])
