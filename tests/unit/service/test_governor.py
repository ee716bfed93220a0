"""The rules over a learner: what is asked for while it runs, another policy, the table of sites."""

import logging
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from optpolined.cli import _reread_policy
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.config import LearningConfig, PolicyConfig
from optpolined.ctl import main as ctl
from optpolined.kernel.symbols import Symbols
from optpolined.learning.strategy import Snapshot
from optpolined.service import answers
from optpolined.service.answers import answer
from optpolined.service.governor import Governor
from optpolined.service.learner import Learner
from optpolined.service.lending import Lending
from optpolined.service.naming import Names
from optpolined.service.rules import Rules
from optpolined.service.session import Session
from optpolined.service.static_calls import StaticCalls
from optpolined.service.survey import Inventory, Survey
from optpolined.telemetry.requests import Answer, Ban, ListSites, Pin, Request, Requests, Unpin
from optpolined.telemetry.server import serve_status, status_socket
from optpolined.telemetry.status import Status
from tests.unit.service.test_rules import SITES, SYMBOLS, TARGETS, at

WITHHELD = at(0x320)
PINNED = Chain((at(0x100),))


class Guest:
    """Six sites, of which the policy withholds one, and no machine behind them."""

    def __init__(self, policy: PolicyConfig) -> None:
        eligible = {address: site for address, site in SITES.items() if address != WITHHELD}
        self.survey = survey = Survey.__new__(Survey)
        survey.symbols = Symbols(SYMBOLS)
        reasons = {at(0x30): "noinstr", WITHHELD: "policy_excluded"}
        survey.inventory = Inventory(eligible, reasons, {WITHHELD: SITES[WITHHELD]})
        session = Session.__new__(Session)
        session.survey = survey
        self.learner = Learner(LearningConfig(), session)
        names = Names(survey.symbols, eligible, reasons, TARGETS.__contains__)
        self.governor = Governor(Rules(policy), survey, self.learner, names)
        self.epoch = 0

    def wanted(self) -> dict[int, Form]:
        """After one more epoch, in which nobody called anything."""
        self.epoch += 1
        self.learner.decide(Snapshot(self.epoch, 0.5, {}, dict(self.learner.wanted)))
        return {site: form for site, form in self.learner.wanted.items() if form != LEARNING}

    def ask(self, request: Request) -> Answer:
        return answer(
            request,
            lending=Lending.__new__(Lending),
            static_calls=StaticCalls.__new__(StaticCalls),
            governor=self.governor,
            pause=None,
        )


@pytest.fixture
def guest() -> Guest:
    return Guest(PolicyConfig())


def test_a_pin_and_a_ban_hold_from_the_next_epoch_on(guest: Guest) -> None:
    assert guest.wanted() == {}
    assert guest.ask(Pin(site="alpha+0x10", target="beta")).outcome == "done"
    assert guest.ask(Ban(what="beta")).outcome == "done"
    assert guest.wanted() == {at(0x10): PINNED, at(0x100): ORIGINAL}
    assert guest.governor.pinned() == {at(0x10)}
    assert [(site.site, site.state, site.reason) for site in guest.governor.ruled()] == [
        ("alpha+0x10", "pinned", "pinned to beta"),
        ("beta", "banned", "banned by 'beta'"),
    ]
    assert guest.learner.states[at(0x10)] == "pinned"
    guest.ask(Unpin(site="alpha+0x10"))
    assert guest.wanted() == {at(0x100): ORIGINAL}
    assert guest.learner.wanted[at(0x10)] == LEARNING


def test_what_cannot_be_changes_nothing(guest: Guest) -> None:
    said = guest.ask(Pin(site="alpha", target="beta"))
    assert said.outcome == "refused"
    assert "may be any of 2 sites" in said.says
    assert guest.wanted() == {}


def test_another_policy_lets_sites_in_and_puts_others_back(guest: Guest) -> None:
    guest.ask(Pin(site="alpha+0x10", target="beta"))
    guest.governor.adopt(PolicyConfig(exclude=("alpha",)))
    assert guest.wanted() == {at(0x10): ORIGINAL, at(0x20): ORIGINAL}
    assert guest.learner.wanted[WITHHELD] == LEARNING
    assert guest.survey.inventory.skipped == {"noinstr": 1}
    guest.governor.adopt(PolicyConfig())
    assert guest.wanted() == {}


def test_the_table_tells_every_site_and_why(guest: Guest) -> None:
    guest.ask(Pin(site="alpha+0x10", target="beta"))
    guest.wanted()
    said = guest.ask(ListSites(pattern="al*"))
    assert said.says == "3 sites"
    assert [(row["site"], row["state"], row["reason"], row["targets"]) for row in said.rows] == [
        ("alpha+0x10", "pinned", "pinned to beta", "beta"),
        ("alpha+0x20", "learning", "first window", ""),
        ("alpha+0x30", "skipped", "noinstr", ""),
    ]
    assert guest.ask(ListSites()).says == "7 sites"


def test_a_long_table_is_cut_and_says_so(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_ROWS_MAX", 2)
    said = guest.ask(ListSites())
    assert said.says == "7 sites; 2 shown: name a pattern"
    assert len(said.rows) == 2


@contextmanager
def served(guest: Guest, directory: Path) -> Iterator[None]:
    """A daemon's socket, and a loop behind it."""
    requests, end = Requests(), threading.Event()

    def loop() -> None:
        while not end.wait(0.01):
            while (asked := requests.take()) is not None:
                asked.answer(guest.ask(asked.request))

    thread = threading.Thread(target=loop)
    thread.start()
    status = Status("vm1", ruled=guest.governor.ruled())
    try:
        with serve_status(status_socket(directory, "vm1"), lambda: status, requests):
            yield
    finally:
        end.set()
        thread.join()


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
        "alpha+0x30  skipped: noinstr",
        "3 sites",
        "not banned any more by 't*'",
        "alpha+0x10 is not pinned any more, and learns",
    ]
    assert err == "optpolinectl: alpha+0x10 is not pinned\n"


def test_the_status_names_who_is_ruled_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = Guest(PolicyConfig(pins={"alpha+0x10": "beta"}))
    text = f'runtime_directory = "{tmp_path}"\n[qemu]\nqmp_socket = "/run/qmp"\n'
    (tmp_path / "vm1.toml").write_text(text, encoding="utf-8")
    with served(guest, tmp_path):
        assert ctl(["status", "--guest", "vm1", "--config-dir", str(tmp_path)]) == 0
    assert "pinned     alpha+0x10: pinned to beta" in capsys.readouterr().out.splitlines()


def test_a_hang_up_reads_the_policy_once_and_a_wrong_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, hung_up = tmp_path / "vm1.toml", threading.Event()
    options = Namespace(guest="vm1", config_dir=tmp_path)
    head = '[qemu]\nqmp_socket = "/run/qmp"\n[policy]\n'
    file.write_text(head + 'bans = ["vfs_*"]\n', encoding="utf-8")
    assert _reread_policy(options, hung_up) is None
    hung_up.set()
    assert _reread_policy(options, hung_up) == PolicyConfig(bans=("vfs_*",))
    assert _reread_policy(options, hung_up) is None
    file.write_text(head + "bans = 7\n", encoding="utf-8")
    hung_up.set()
    with caplog.at_level(logging.ERROR):
        assert _reread_policy(options, hung_up) is None
    assert "the policy stays as it is" in caplog.text
