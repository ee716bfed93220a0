"""Commands over a learner: overrides, another policy, the table of sites."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from optpolined.api.refusal import Refusal
from optpolined.api.requests import (
    Answer,
    Ban,
    Freeze,
    ListSites,
    Pin,
    Relearn,
    Revert,
    Thaw,
    Unpin,
)
from optpolined.api.sites import SiteRow
from optpolined.api.status import Status
from optpolined.codegen.forms import LEARNING, ORIGINAL
from optpolined.config import PolicyConfig
from optpolined.control.overrides import Standstill
from optpolined.ctl import main as ctl
from tests.unit.control.made_up import PINNED, WITHHELD, Guest, at
from tests.unit.ctl.fake_daemon import served as serve_answers


@pytest.fixture
def guest() -> Guest:
    return Guest(PolicyConfig())


def test_a_pin_and_a_ban_hold_from_the_next_epoch_on(guest: Guest) -> None:
    assert guest.wanted() == {}
    assert guest.ask(Pin(site="alpha+0x10", target="beta")).outcome == "done"
    assert guest.ask(Ban(what="beta")).outcome == "done"
    assert guest.wanted() == {at(0x10): PINNED, at(0x100): ORIGINAL}
    assert guest.operator.pinned_sites == {at(0x10)}
    assert [(site.site, site.state, site.reason) for site in guest.operator.overridden_sites()] == [
        ("alpha+0x10", "pinned", "pinned to beta"),
        ("beta", "banned", "banned by 'beta'"),
    ]
    assert guest.learner.states[at(0x10)] == "pinned"
    guest.ask(Unpin(site="alpha+0x10"))
    assert guest.wanted() == {at(0x100): ORIGINAL}
    assert guest.learner.wanted[at(0x10)] == LEARNING


def test_a_refused_command_changes_nothing(guest: Guest) -> None:
    said = guest.ask(Pin(site="alpha", target="beta"))
    assert said.outcome == "refused"
    assert "may be any of 2 sites" in said.says
    assert guest.wanted() == {}


def test_another_policy_lets_sites_in_and_puts_others_back(guest: Guest) -> None:
    guest.ask(Pin(site="alpha+0x10", target="beta"))
    guest.operator.reload_policy(PolicyConfig(exclude=("alpha",)))
    assert guest.wanted() == {at(0x10): ORIGINAL, at(0x20): ORIGINAL}
    assert guest.learner.wanted[WITHHELD] == LEARNING
    assert guest.survey.inventory.skipped == {"noinstr": 1}
    guest.operator.reload_policy(PolicyConfig())
    assert guest.wanted() == {}


def test_the_table_has_every_site_and_why(guest: Guest) -> None:
    guest.ask(Pin(site="alpha+0x10", target="beta"))
    guest.wanted()
    said = guest.ask(ListSites(pattern="al*"))
    assert said.says == "3 sites"
    assert [(row.site, row.state, row.reason, names_of(row)) for row in said.sites] == [
        ("alpha+0x10", "pinned", "pinned to beta", ["beta"]),
        ("alpha+0x20", "learning", "first window", []),
        ("alpha+0x30", "skipped", "noinstr", []),
    ]
    (pinned,) = guest.ask(ListSites(states=("pinned",))).sites
    assert pinned.form == "original"
    guest.forms[at(0x10)] = PINNED
    assert guest.ask(ListSites(states=("pinned",))).sites[0].form == "chain"
    assert guest.ask(ListSites()).says == "7 sites"


def names_of(row: SiteRow) -> list[str]:
    return [target.name for target in row.targets]


def test_a_long_table_is_cut_and_the_answer_says_so(guest: Guest) -> None:
    said = guest.ask(ListSites(top=2))
    assert said.says == "7 sites; 2 shown"
    assert len(said.sites) == 2


def test_a_reverted_site_stays_so_until_it_is_relearned(guest: Guest) -> None:
    assert guest.ask(Pin(site="alpha+0x10", target="beta")).outcome == "done"
    assert "is pinned" in guest.ask(Revert(site="alpha+0x10")).says
    assert "is pinned" in guest.ask(Relearn(site="alpha+0x10")).says
    guest.ask(Unpin(site="alpha+0x10"))
    said = guest.ask(Revert(site="alpha+0x10"))
    assert said == Answer(
        outcome="done", says="alpha+0x10 is put back; `relearn` lets it learn again"
    )
    assert guest.wanted() == {at(0x10): ORIGINAL}
    (row,) = guest.ask(ListSites(states=("banned",))).sites
    assert (row.site, row.reason) == ("alpha+0x10", "reverted by hand: relearn lets it learn again")
    assert guest.ask(Relearn(site="alpha+0x10")).outcome == "done"
    assert guest.wanted() == {}
    assert guest.learner.wanted[at(0x10)] == LEARNING


def test_a_site_that_is_relearned_begins_anew(guest: Guest) -> None:
    for _ in range(20):  # no calls, so that its window ends
        guest.wanted()
    assert guest.learner.states[at(0x20)] == "cold"
    assert guest.ask(Relearn(site="alpha+0x20")).outcome == "done"
    guest.wanted()
    assert guest.learner.states[at(0x20)] == "learning"
    assert guest.learner.wanted[at(0x20)] == LEARNING


def test_a_standstill_holds_until_thaw(guest: Guest) -> None:
    assert guest.ask(Thaw()).says == "nothing is frozen"
    found = []
    for order in (Freeze(), Revert(), Thaw()):
        guest.ask(order)
        found.append(guest.operator.standstill)
    assert found == [Standstill.FROZEN, Standstill.REVERTED, Standstill.NONE]


@contextmanager
def served(guest: Guest, directory: Path) -> Iterator[None]:
    """A daemon's socket, and a loop behind it."""
    status = Status("vm1", ruled=guest.operator.overridden_sites())
    with serve_answers(directory, guest.ask, lambda: status):
        yield


def test_the_command_asks_for_all_of_it(
    guest: Guest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f'runtime_directory = "{tmp_path}"\n[qemu]\nqmp_socket = "/run/qmp"\n'
    (tmp_path / "vm1.toml").write_text(text, encoding="utf-8")
    where = ["--guest", "vm1", "--config-dir", str(tmp_path)]
    with served(guest, tmp_path):
        assert ctl(["pin", "alpha+0x10", "beta", *where]) == 0
        assert ctl(["ban", "t*", *where]) == 0
        assert ctl(["sites", "alpha", *where]) == 0
        assert ctl(["unban", "t*", *where]) == 0
        assert ctl(["unpin", "alpha+0x10", *where]) == 0
        assert ctl(["unpin", "alpha+0x10", *where]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "alpha+0x10 is pinned to beta",
        "banned by 't*': 2 sites",
        "alpha+0x10  pinned -> beta: pinned to beta",
        "alpha+0x20  cold: not looked at yet",
        f"alpha+0x30  skipped: noinstr, because {Refusal.NOINSTR.meaning}",
        "3 sites",
        "not banned any more by 't*'",
        "alpha+0x10 is not pinned any more, and learns",
    ]
    assert err == "optpolinectl: alpha+0x10 is not pinned\n"


def test_the_status_names_the_overridden_sites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = Guest(PolicyConfig(pins={"alpha+0x10": "beta"}))
    text = f'runtime_directory = "{tmp_path}"\n[qemu]\nqmp_socket = "/run/qmp"\n'
    (tmp_path / "vm1.toml").write_text(text, encoding="utf-8")
    with served(guest, tmp_path):
        assert ctl(["status", "--guest", "vm1", "--config-dir", str(tmp_path)]) == 0
    assert "pinned     alpha+0x10: pinned to beta" in capsys.readouterr().out.splitlines()
