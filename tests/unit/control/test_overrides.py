"""Pins and bans by name: what they mean in a guest, and which are refused."""

import logging

import pytest

from optpolined.api.requests import Ban, Pin, Unban, Unpin
from optpolined.codegen.forms import ORIGINAL, Chain
from optpolined.config import PolicyConfig
from optpolined.control.names import NameRefusedError, Names
from optpolined.control.operator import Operator
from tests.unit.control.made_up import BASE, SITES, Guest, at


@pytest.fixture
def names() -> Names:
    return made().names


@pytest.fixture
def operator() -> Operator:
    return made().operator


def made(policy: PolicyConfig | None = None) -> Guest:
    return Guest(policy or PolicyConfig(), withheld_sites=())


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
def test_a_name_that_is_no_target(operator: Operator, text: str, says: str) -> None:
    with pytest.raises(NameRefusedError, match=says):
        operator.carry_out(Pin(site="alpha+0x10", target=text))
    assert not operator.by_site


def test_every_site_has_a_name_that_means_it(names: Names) -> None:
    for site in SITES:
        assert names.site(names.site_name(site)) == site
    assert names.site_name(at(0x10)) == "alpha+0x10"
    assert names.site_name(at(0x100)) == "beta+0x0"
    assert names.site_name(at(0x210)) == f"{at(0x210):#x}"
    assert names.name(at(0x200)) == f"{at(0x200):#x}"


def test_a_pin_is_a_chain_of_one_until_it_is_taken_back(operator: Operator) -> None:
    says = operator.carry_out(Pin(site=f"{at(0x10):#x}", target="alpha"))
    assert says == "alpha+0x10 is pinned to alpha"
    assert operator.carry_out(Pin(site="alpha+16", target="beta")) == "alpha+0x10 is pinned to beta"
    (override,) = operator.by_site.items()
    assert override[0] == at(0x10)
    assert (override[1].form, override[1].reason) == (Chain((at(0x100),)), "pinned to beta")
    says = operator.carry_out(Unpin(site=f"{at(0x10):#x}"))
    assert says.endswith("is not pinned any more, and learns")
    assert not operator.by_site
    with pytest.raises(NameRefusedError, match="is not pinned"):
        operator.carry_out(Unpin(site="alpha+0x10"))


def test_a_ban_of_a_site_or_of_functions(operator: Operator) -> None:
    assert operator.carry_out(Ban(what=f"{at(0x10):#x}")) == "alpha+0x10 is banned"
    assert operator.carry_out(Ban(what="t*")) == "banned by 't*': 3 sites"
    assert operator.carry_out(Ban(what="kvm:*")) == "banned by 'kvm:*': 0 sites"
    overrides = operator.by_site
    assert overrides.keys() == {at(0x10), at(0x210), at(0x310), at(0x320)}
    assert {override.form for override in overrides.values()} == {ORIGINAL}
    assert overrides[at(0x10)].reason == "banned by 'alpha+0x10'"
    assert overrides[at(0x320)].reason == "banned by 't*'"
    assert operator.carry_out(Unban(what=f"{at(0x10):#x}")) == "not banned any more by 'alpha+0x10'"
    operator.carry_out(Unban(what="t*"))
    assert not operator.by_site
    with pytest.raises(NameRefusedError, match=r"t\* is not banned; bans: kvm:\*"):
        operator.carry_out(Unban(what="t*"))


def test_a_banned_site_cannot_be_pinned_and_a_ban_goes_before_a_pin(operator: Operator) -> None:
    operator.carry_out(Pin(site="alpha+0x10", target="beta"))
    operator.carry_out(Ban(what="alpha"))
    assert operator.by_site[at(0x10)].form == ORIGINAL
    with pytest.raises(NameRefusedError, match="alpha\\+0x20 is banned by 'alpha': unban"):
        operator.carry_out(Pin(site="alpha+0x20", target="beta"))
    operator.carry_out(Unban(what="alpha"))
    assert operator.by_site[at(0x10)].form == Chain((at(0x100),))


def test_overrides_of_the_configuration(caplog: pytest.LogCaptureFixture) -> None:
    policy = PolicyConfig(
        exclude=("beta",),
        pins={"alpha+0x10": "beta", "gone+0x10": "beta"},
        bans=("alpha+0x20", "gone+0x1"),
    )
    with caplog.at_level(logging.WARNING):
        operator = made(policy).operator
        first = dict(operator.by_site)
        operator.apply_overrides()
    assert operator.by_site == first
    assert {site: override.reason for site, override in first.items()} == {
        at(0x10): "pinned to beta",
        at(0x20): "banned by 'alpha+0x20'",
        at(0x100): "policy_excluded",
    }
    assert [record.message for record in caplog.records] == [
        "the pin of gone+0x10 to beta does not hold: the guest has no function gone",
        "the ban of gone+0x1 does not hold: the guest has no function gone",
    ]
    operator.reload_policy(PolicyConfig())
    assert not operator.by_site


def test_a_pin_of_an_unloaded_module_can_be_taken_back() -> None:
    operator = made(PolicyConfig(pins={"gone+0x10": "beta"})).operator
    operator.carry_out(Unpin(site="gone+0x10"))
    assert not operator.by_site
