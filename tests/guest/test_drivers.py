"""veth, fuse and overlay as Debian has them, built with the gcc plugin, under load."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import pytest

from guest.image import drivers
from guest.image.boot import Guest
from guest.image.build import Image
from guest.image.errors import GuestCommandError
from guest.image.paths import Flavour
from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.kernel.sites.scan import Site
from optpolined.session.text import read_text
from tests.guest.driver_sites import (
    Frame,
    Head,
    Held,
    Work,
    attached,
    head,
    hot_calls,
    other_functions,
)
from tests.guest.harness import end_load, load_state, start_load, wait_until
from tests.guest.test_seed_image import records

_RETARGETS = 1000
_CALLS_MIN = 100
_MISSED_MAX = 0.1
_TROUBLE = re.compile(r"cut here|WARNING|BUG:|Oops|Call Trace|unwind")
_UNLEARNED = (1 << 64) - 1


@pytest.fixture(scope="module")
def driven(images: dict[Flavour, Image]) -> Iterator[Guest]:
    with Guest(images["cloud"].flavour, append="seed") as booted:
        booted.wait_ready()
        yield booted


@pytest.fixture(scope="module")
def work(driven: Guest) -> Iterator[Work]:
    """The daemon after it has promoted what is hot; the load goes on, and must end well."""
    start_load(driven, "--families veth,fuse,overlay")
    Held.mount(driven)
    with attached(driven) as at_work:
        yield at_work


def stands(work: Work, site: Site) -> Head:
    """Return head(), which must be unlearned, or go to the function that it compares with."""
    found = head(work.session, site)
    assert found.compared in {found.goes_to, _UNLEARNED}
    return found


def unlearned(site: Site) -> Head:
    return Head(_UNLEARNED, site.thunk)


def decoys(work: Work, site: GuestVirtual) -> tuple[GuestVirtual, GuestVirtual]:
    """Return two functions that the site does not call."""
    others = other_functions(work.session, work.sites[site].module, work.calls)
    first, second, *_ = (other for other in others if other not in work.calls[site])
    return first, second


def forms_of(work: Work, site: GuestVirtual) -> tuple[Form, ...]:
    """Return forms; the inline part of each differs from that of the next, and last from first."""
    near, far = decoys(work, site)
    # The second target of the site, where it has two.
    (true, _), (far, _), *_ = [*work.calls[site].most_common(), (far, 0)]
    return (
        ORIGINAL,
        Chain((true, far)),
        Chain((far, true)),
        ORIGINAL,
        Chain((near,)),
        LEARNING,
        Chain((near, true)),
        Chain((true,)),
    )


def expected_head(site: Site, form: Form) -> Head:
    if isinstance(form, Chain) and form.targets:
        return Head(form.targets[0], form.targets[0])
    return unlearned(site)


def test_drivers_have_inline_sites(images: dict[Flavour, Image], work: Work) -> None:
    """The daemon finds each site that the plugin declared."""
    built = images["cloud"].seed_modules
    assert set(built) == {*drivers.DRIVERS, "optseed"}
    declared = {name: len(records(built[name])) for name in drivers.DRIVERS}
    found = Counter(site.module for site in work.sites.values() if site.inline)
    assert found == declared
    assert min(found.values()) > 0
    assert found.total() > 30


def test_what_is_hot_is_promoted_to_its_hottest_target(work: Work) -> None:
    assert {work.sites[site].module for site in work.calls} == set(drivers.DRIVERS)
    forms = work.session.look()
    promoted = {
        site: form
        for site, form in forms.items()
        if isinstance(form, Chain) and form.targets and not form.counts_hits
    }
    for site in promoted.keys() & work.calls.keys():
        form, called = promoted[site], work.calls[site]
        assert stands(work, work.sites[site]) == Head(form.targets[0], form.targets[0])
        hottest, most = called.most_common(1)[0]
        # Either of two targets will do where both are as hot.
        assert form.targets[0] == hottest or called[form.targets[0]] > most / 2
    for site in work.sites.keys() - promoted.keys():
        assert stands(work, work.sites[site]) == unlearned(work.sites[site])

    wait_few_miss(work, {site: promoted[site] for site in promoted.keys() & work.calls.keys()})

    # A site may be cold where the load became slower, but none that stays hot.
    if left := work.calls.keys() - promoted.keys():
        wait_until(
            lambda: hot_calls(work.session, left, work.hot),
            "what is not promoted is not hot",
            lambda hot: not hot,
        )


def wait_few_miss(work: Work, chains: Mapping[GuestVirtual, Chain]) -> None:
    """Wait until few of the calls at each site have missed, while hits are counted, too."""
    work.session.apply(
        {site: Chain(chain.targets, counts_hits=True) for site, chain in chains.items()}
    )
    hits, misses = Counter[GuestVirtual](), Counter[GuestVirtual]()

    def look() -> dict[GuestVirtual, tuple[int, int]]:
        for site, gain in work.session.counters.count().items():
            hits[site] += gain.hits
            misses[site] += sum(gain.calls.values()) + gain.other
        return {site: (hits[site], misses[site]) for site in chains}

    wait_until(
        look,
        "few calls miss",
        lambda counted: all(
            hit + miss > _CALLS_MIN and miss <= _MISSED_MAX * (hit + miss)
            for hit, miss in counted.values()
        ),
        pause_seconds=0.5,
    )
    work.session.apply(dict(chains))


def test_stack_within_a_promoted_call_is_complete(work: Work) -> None:
    """It is that of the unpatched site, except for the return address."""
    (site,) = (site for site in work.sites.values() if site.function == "ovl_iterate")
    assert site.inline is not None
    function = work.session.survey.symbols.function(site.address)
    assert function is not None
    behind_slow = site.address + site.length - function.start
    behind_branch = site.inline.branch + len(site.inline.unlearned_branch) - function.start
    true = work.calls[site.address].most_common(1)[0][0]
    near, _ = decoys(work, site.address)
    stacks = {}
    for form, offset in (
        (ORIGINAL, behind_slow),
        (LEARNING, behind_slow),
        (Chain((near, true)), behind_slow),
        (Chain((true,)), behind_branch),
    ):
        assert work.session.apply({site.address: form}).done == 1
        held = Held(work.guest)
        stack = held.stack()
        assert held.release() == Held.NAMES
        at = stack.index(Frame("ovl_iterate", offset))
        assert stack[0].function == "handle_userfault"
        assert stack[at - 1].function == "filldir64"
        assert stack[-1].function == "entry_SYSCALL_64_after_hwframe"
        stacks[form] = [*stack[:at], *stack[at + 1 :]]
    assert len(stacks[ORIGINAL]) > 10
    assert set(map(tuple, stacks.values())) == {tuple(stacks[ORIGINAL])}


def test_wrong_target_costs_time_only(work: Work) -> None:
    """The load goes through each site, although the site compares with what it never calls."""
    wrong = {site: Chain(decoys(work, site)[:1]) for site in work.calls}
    assert work.session.apply(wrong).done == len(wrong)
    calls: dict[GuestVirtual, Counter[GuestVirtual]] = {site: Counter() for site in wrong}

    def uncounted() -> list[GuestVirtual]:
        for site, gain in work.session.counters.count().items():
            if site in calls:
                calls[site].update(gain.calls)
        return [
            site
            for site, called in work.calls.items()
            if not calls[site][called.most_common(1)[0][0]]
        ]

    wait_until(uncounted, "the hottest target of each site is called", lambda left: not left)
    assert load_state(work.guest)["errors"] == 0


def test_retargets_under_load(work: Work) -> None:
    """All sites change at once, while a task sleeps below one of them."""
    before = load_state(work.guest)
    forms = {site: forms_of(work, site) for site in work.calls}
    work.session.apply({site: possible[-1] for site, possible in forms.items()})
    heads = {site: stands(work, work.sites[site]) for site in forms}
    held = Held(work.guest)
    stack = held.stack()
    retargets = 0
    for step in itertools.count():
        wanted = {site: possible[step % len(possible)] for site, possible in forms.items()}
        report = work.session.apply(wanted)
        assert (report.done, report.sites) == (len(wanted), {})
        found = work.session.look()
        assert {site: found[site] for site in wanted} == wanted
        now = {site: stands(work, work.sites[site]) for site in wanted}
        assert now == {site: expected_head(work.sites[site], wanted[site]) for site in wanted}
        retargets += sum(now[site] != heads[site] for site in wanted)
        heads = now
        if step % len(wanted) == 0:
            work.session.recycle()  # not each time: the next change would wait for its end first
        if retargets >= _RETARGETS:
            break
    assert held.stack() == stack
    assert held.release() == Held.NAMES
    after = load_state(work.guest)
    assert after["checks"] > before["checks"]
    assert (after["errors"], after["workers"]) == (0, before["workers"])


def test_detach_leaves_nothing_behind(work: Work) -> None:
    texts = work.session.survey.texts
    assert {region.module for region in texts} >= {None, *drivers.DRIVERS}
    space = work.session.space
    assert read_text(space, texts) != texts
    work.daemon.detach()
    assert work.daemon.report().text_identical_after_detach is True
    assert read_text(space, texts) == texts
    Held.unmount(work.guest)
    end_load(work.guest)
    assert not _TROUBLE.search(work.guest.run("dmesg"))


def test_each_driver_carries_a_load(driven: Guest) -> None:
    for family in drivers.DRIVERS:
        start_load(driven, f"--families {family}")
        # Each worker has done a turn.
        wait_until(
            lambda: load_state(driven),
            f"each worker has done a turn of {family}",
            lambda state: state["rounds"] >= 4 and state["checks"] > 40,
        )
        end_load(driven)
    assert not driven.run("ls -A /run/optload.d 2>/dev/null || true")


def test_drivers_are_what_the_load_uses(driven: Guest) -> None:
    driven.run("rmmod veth fuse overlay")
    for family in drivers.DRIVERS:
        with pytest.raises(GuestCommandError, match="exit code 1"):
            driven.run(f"optload --seconds 1 --families {family} --state /run/unloaded")
    for family in drivers.DRIVERS:
        driven.run(f"insmod /lib/modules/seed/{family}.ko")
    assert not _TROUBLE.search(driven.run("dmesg"))
