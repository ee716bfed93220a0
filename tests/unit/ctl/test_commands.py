"""Each command asks for what it says, shows the answer and exits by it."""

import json
from pathlib import Path

import pytest

from optpolined.api.requests import (
    Answer,
    Ban,
    Explain,
    Freeze,
    ListSites,
    ListStaticCalls,
    Pin,
    Relearn,
    ReleaseStub,
    Request,
    Revert,
    SetStaticCall,
    TakeStub,
    Thaw,
    Unban,
    Unpin,
)
from optpolined.api.sites import StaticCallRow
from optpolined.api.status import STATUS
from tests.unit.ctl.conftest import Command
from tests.unit.ctl.fake_daemon import COLD, EXPLANATION, HOT, MISSED, STATUS_NOW, served

ASKED: list[tuple[list[str], Request]] = [
    (["sites"], ListSites()),
    (["sites", "vfs_*"], ListSites(pattern="vfs_*")),
    (["sites", "--symbol", "kvm:*"], ListSites(pattern="kvm:*")),
    (
        ["sites", "--state", "promoted", "--state", "pinned", "--order", "misses", "--top", "7"],
        ListSites(states=("promoted", "pinned"), order="misses", top=7),
    ),
    (["explain", HOT.site], Explain(site=HOT.site)),
    (["pin", "a+0x1", "b"], Pin(site="a+0x1", target="b")),
    (["unpin", "a+0x1"], Unpin(site="a+0x1")),
    (["ban", "security_*"], Ban(what="security_*")),
    (["unban", "security_*"], Unban(what="security_*")),
    (["relearn", "a+0x1"], Relearn(site="a+0x1")),
    (["freeze"], Freeze()),
    (["thaw"], Thaw()),
    (["revert", "a+0x1"], Revert(site="a+0x1")),
    (["revert", "--all"], Revert(site=None)),
    (["release-stub"], ReleaseStub()),
    (["take-stub"], TakeStub()),
    (["static-call", "list"], ListStaticCalls()),
    (["static-call", "set", "key", "function"], SetStaticCall(key="key", function="function")),
    (["static-call", "set", "key", "NULL"], SetStaticCall(key="key")),
]


@pytest.mark.parametrize(("arguments", "request_"), ASKED, ids=[" ".join(it[0]) for it in ASKED])
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_each_command_sends_its_request(
    command: Command, directory: Path, arguments: list[str], request_: Request, *, as_json: bool
) -> None:
    with served(directory) as asked:
        code, out, err = command(*arguments, *(["--json"] if as_json else []))
    assert (asked, code, err) == ([request_], 0, "")
    assert out
    if as_json:
        told = json.loads(out)
        assert told["outcome"] == "done"
        assert Answer.model_validate(told)


@pytest.mark.parametrize(("outcome", "code"), [("done", 0), ("failed", 1), ("refused", 2)])
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_the_exit_code_is_the_outcome_and_complaints_are_one_line(
    command: Command, directory: Path, outcome: str, code: int, *, as_json: bool
) -> None:
    said = Answer.model_validate({"outcome": outcome, "says": "as it is"})
    with served(directory, lambda _: said):
        got, out, err = command("take-stub", *(["--json"] if as_json else []))
    assert got == code
    assert err == ("" if outcome == "done" else "optpolinectl: as it is\n")
    if as_json:
        assert json.loads(out) == {"outcome": outcome, "says": "as it is"}
    else:
        assert out == ("as it is\n" if outcome == "done" else "")


def test_sites_are_lines_in_a_pipe(command: Command, directory: Path) -> None:
    with served(directory):
        _, out, _ = command("sites", "--order", "calls", "--top", "2")
    assert out.splitlines() == [
        (
            "vfs_read+0x9e  promoted -> ext4_file_read_iter, pipe_read: "
            "2 targets have 97% for 3 epochs, 224,527 calls/s, 1,203 missed/s"
        ),
        "tcp_ack+0x1f0  missing -> bictcp_acked: 40% missed, 90 calls/s, 5,000 missed/s",
        "3 sites",
    ]


def test_sites_as_json_are_rows_of_the_api_also_where_there_are_none(
    command: Command, directory: Path
) -> None:
    with served(directory):
        _, out, _ = command("sites", "--json")
        _, none, _ = command("sites", "nobody", "--json")
    assert Answer.model_validate_json(out).sites == (HOT, COLD, MISSED)
    assert json.loads(none) == {"outcome": "done", "says": "0 sites", "sites": []}


def test_an_explanation_as_json_is_that_of_the_api(command: Command, directory: Path) -> None:
    with served(directory):
        _, out, _ = command("explain", HOT.site, "--json")
    assert Answer.model_validate_json(out).explanation == EXPLANATION


def test_static_calls_show_their_targets_of_now_and_of_the_build(
    command: Command, directory: Path
) -> None:
    calls = (
        StaticCallRow("key", "optseed", "beta", "alpha", 3),
        StaticCallRow("other", None, None, None, 1),
    )
    said = Answer(outcome="done", says="2 static calls", static_calls=calls)
    with served(directory, lambda _: said):
        _, out, _ = command("static-call", "list")
    assert out.splitlines() == [
        "key [optseed] -> beta (built: alpha), 3 sites",
        "other -> NULL, 1 sites",
        "2 static calls",
    ]


def test_the_status_is_figures_and_as_json_all_of_it(command: Command, directory: Path) -> None:
    with served(directory):
        _, out, _ = command("status")
        _, told, _ = command("status", "--json")
    assert STATUS.validate_json(told) == STATUS_NOW
    lines = out.splitlines()
    assert "phase      running, epoch 624, 312 s" in lines
    assert "calls      224,527 direct/s (97.2% of all), 1,203 missed/s" in lines
    assert "stops      1,905: p50 1.00, p99 8.26, max 12.00 ms" in lines
    assert "pinned     alpha+0x10: pinned to beta" in lines
    assert not any(line.startswith("trouble") for line in lines)


def test_a_rescue_without_qemu_says_that_there_is_nothing_to_do(command: Command) -> None:
    code, out, err = command("rescue", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["says"].startswith("nothing to resume")
