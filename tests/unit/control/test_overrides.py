"""Pins and bans by name: what they mean in a guest, and what is refused."""

import logging

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.api.refusal import Refusal
from optpolined.codegen.forms import ORIGINAL, Chain
from optpolined.config import PolicyConfig
from optpolined.control.names import NameRefusedError, Names
from optpolined.control.overrides import Overrides
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.sites.scan import Site
from optpolined.kernel.symbols.symbols import Symbols
from optpolined.x86 import Register

BASE = 0xFFFF_FFFF_8100_0000
SYMBOLS = [
    (BASE, "_stext"),
    (BASE, "alpha"),
    (BASE + 0x100, "beta"),
    (BASE + 0x200, "twice"),
    (BASE + 0x300, "twice"),
    (BASE + 0x400, "own_stub"),
    (BASE + 0x500, "_etext"),
    (BASE + 0x2000, "_sinittext"),
    (BASE + 0x2000, "start"),
    (BASE + 0x2100, "_einittext"),
]


def at(offset: int) -> GuestVirtual:
    return GuestVirtual(BASE + offset)


def made(offset: int, function: str) -> Site:
    thunk = GuestVirtual(BASE + 0x4F0)
    return Site(at(offset), bytes(5), SiteKind.CALL, Register.RAX, thunk, function, None)


SITES = {
    site.address: site
    for site in (
        made(0x10, "alpha"),
        made(0x20, "alpha"),
        made(0x100, "beta"),
        made(0x210, "twice"),
        made(0x310, "twice"),
        made(0x320, "twice"),
    )
}
TARGETS = {at(offset) for offset in (0, 0x100, 0x200, 0x300)}


@pytest.fixture
def names() -> Names:
    return Names(Symbols(SYMBOLS), SITES, {at(0x30): Refusal.NOINSTR}, TARGETS.__contains__)


@pytest.fixture
def rules() -> Overrides:
    return Overrides(PolicyConfig())


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("alpha+0x10", 0x10),
        ("alpha+32", 0x20),
        ("beta", 0x100),
        ("beta+0x0", 0x100),
        (f"{BASE + 0x210:#x}", 0x210),
        ("twice+0x20", 0x320),  # the other one has no site there
    ],
)
def test_a_site_by_its_name(names: Names, text: str, offset: int) -> None:
    assert names.site(text) == at(offset)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("alpha", r"may be any of 2 sites: alpha\+0x10, alpha\+0x20"),
        ("twice+0x10", "may be any of 2 sites"),
        ("alpha+0x11", "no indirect call there"),
        ("0x1234", "no indirect call there"),
        ("alpha+0x30", "is left alone: noinstr"),
        ("gamma+0x10", "the guest has no function gamma"),
        ("alpha+0x10 [kvm]", "no function alpha in the module kvm"),
        ("kvm:alpha+0x10", "no function alpha in the module kvm"),
        ("alpha +0x10", "name it function"),
        ("x" * 400 + "\n", "name it function"),
    ],
)
def test_a_name_that_is_no_site(names: Names, text: str, says: str) -> None:
    with pytest.raises(NameRefusedError, match=says) as caught:
        names.site(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("own_stub", "no function that may be called"),
        ("alpha+0x4", "no function that may be called"),
        ("0x1234", "no function that may be called"),
        ("twice", "the guest has 2 functions twice: 0xffffffff81000200, 0xffffffff81000300"),
        ("gamma", "the guest has no function gamma"),
    ],
)
def test_a_name_that_is_no_target(names: Names, rules: Overrides, text: str, says: str) -> None:
    with pytest.raises(NameRefusedError, match=says):
        rules.pin(names, "alpha+0x10", text)
    assert not rules.overrides(names)


def test_every_site_has_a_name_that_means_it(names: Names) -> None:
    for site in SITES:
        assert names.site(names.site_name(site)) == site
    assert names.site_name(at(0x10)) == "alpha+0x10"
    assert names.site_name(at(0x100)) == "beta+0x0"
    assert names.site_name(at(0x210)) == f"{at(0x210):#x}"
    assert names.name(at(0x200)) == f"{at(0x200):#x}"


def test_a_pin_is_a_chain_of_one_until_it_is_taken_back(names: Names, rules: Overrides) -> None:
    assert rules.pin(names, f"{at(0x10):#x}", "alpha") == "alpha+0x10 is pinned to alpha"
    assert rules.pin(names, "alpha+16", "beta") == "alpha+0x10 is pinned to beta"
    (override,) = rules.overrides(names).items()
    assert override[0] == at(0x10)
    assert (override[1].form, override[1].reason) == (Chain((at(0x100),)), "pinned to beta")
    assert rules.unpin(names, f"{at(0x10):#x}").endswith("not pinned any more, and learns")
    assert not rules.overrides(names)
    with pytest.raises(NameRefusedError, match="is not pinned"):
        rules.unpin(names, "alpha+0x10")


def test_a_ban_of_a_site_or_of_functions(names: Names, rules: Overrides) -> None:
    assert rules.ban(names, f"{at(0x10):#x}") == "alpha+0x10 is banned"
    assert rules.ban(names, "t*") == "banned by 't*': 3 sites"
    assert rules.ban(names, "kvm:*") == "banned by 'kvm:*': 0 sites"
    overrides = rules.overrides(names)
    assert overrides.keys() == {at(0x10), at(0x210), at(0x310), at(0x320)}
    assert {override.form for override in overrides.values()} == {ORIGINAL}
    assert overrides[at(0x10)].reason == "banned by 'alpha+0x10'"
    assert overrides[at(0x320)].reason == "banned by 't*'"
    assert rules.unban(names, f"{at(0x10):#x}") == "not banned any more by 'alpha+0x10'"
    rules.unban(names, "t*")
    assert not rules.overrides(names)
    with pytest.raises(NameRefusedError, match=r"t\* is not banned; bans: kvm:\*"):
        rules.unban(names, "t*")


def test_a_banned_site_cannot_be_pinned_and_a_ban_goes_before_a_pin(
    names: Names, rules: Overrides
) -> None:
    rules.pin(names, "alpha+0x10", "beta")
    rules.ban(names, "alpha")
    assert rules.overrides(names)[at(0x10)].form == ORIGINAL
    with pytest.raises(NameRefusedError, match="alpha\\+0x20 is banned by 'alpha': unban"):
        rules.pin(names, "alpha+0x20", "beta")
    rules.unban(names, "alpha")
    assert rules.overrides(names)[at(0x10)].form == Chain((at(0x100),))


def test_rules_of_the_configuration(names: Names, caplog: pytest.LogCaptureFixture) -> None:
    policy = PolicyConfig(
        exclude=("beta",),
        pins={"alpha+0x10": "beta", "gone+0x10": "beta"},
        bans=("alpha+0x20", "gone+0x1"),
    )
    rules = Overrides(policy)
    with caplog.at_level(logging.WARNING):
        first, second = rules.overrides(names), rules.overrides(names)
    assert first == second
    assert {site: override.reason for site, override in first.items()} == {
        at(0x10): "pinned to beta",
        at(0x20): "banned by 'alpha+0x20'",
        at(0x100): "policy_excluded",
    }
    assert [record.message for record in caplog.records] == [
        "the pin of gone+0x10 to beta does not hold: the guest has no function gone",
        "the ban of gone+0x1 does not hold: the guest has no function gone",
    ]
    rules.adopt(PolicyConfig())
    assert not rules.overrides(names)


def test_a_pin_of_a_module_that_has_gone_can_be_taken_back(names: Names) -> None:
    rules = Overrides(PolicyConfig(pins={"gone+0x10": "beta"}))
    rules.unpin(names, "gone+0x10")
    assert not rules.overrides(names)
