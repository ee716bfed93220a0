"""Orders to a daemon at work: freeze, thaw, revert, relearn; and what it explains."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from guest.image.boot import Guest
from optpolined.api.requests import Explain, ListSites, Revert
from optpolined.api.sites import Explanation, SiteRow
from optpolined.api.status import DaemonPhase
from optpolined.config import PolicyConfig
from optpolined.kernel.module.module_list import read_modules
from optpolined.session.link import connect
from optpolined.session.survey import Survey
from optpolined.telemetry.socket_client import ask
from tests.guest.command import COMMAND
from tests.guest.harness import PATIENCE_SECONDS, bench_calls, config_of
from tests.guest.running import Running, text_was_put_back

FEW = '[policy]\nmode = "opt-in"\ninclude = ["optbench:*"]\n'
SITE = "optbench_call_2_skewed"


class Ordered(Running):
    """A daemon that manages the sites of optbench alone."""

    def __init__(self, guest: Guest, directory: Path) -> None:
        super().__init__(guest, directory, FEW)
        self._directory = directory

    def order(self, *words: str) -> str:
        """Run `optpolinectl`, which must succeed; return what it says."""
        result = subprocess.run(
            [
                *(str(COMMAND.with_name("optpolinectl")), *words),
                *("--guest", "test", "--config-dir", str(self._directory), "--json"),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=True,
        )
        return str(json.loads(result.stdout)["says"])

    def row(self) -> SiteRow:
        (row,) = ask(self._status, ListSites(pattern=f"optbench:{SITE}")).sites
        return row

    def explain(self) -> Explanation:
        told = ask(self._status, Explain(site=self.row().site)).explanation
        assert told is not None
        return told

    def wait_promoted(self) -> None:
        self.wait_for(lambda _: self.row().form == "chain")


def kernel_text(guest: Guest) -> dict[object, bytes]:
    """Read all text that has sites, through the guest's second QMP socket."""
    config = config_of(guest)
    aside = config.qemu.model_copy(update={"qmp_socket": guest.side_qmp})
    with connect(config.model_copy(update={"qemu": aside}), writable=False) as link:
        modules = read_modules(link.attachment.space, link.attachment.header)
        texts = Survey(link.attachment, modules, PolicyConfig(), {}).texts
        return {(region.base, region.size): text for region, text in texts.items()}


@pytest.fixture
def daemon(guest: Guest, tmp_path: Path) -> Iterator[Ordered]:
    guest.run("echo reset >/proc/optbench; echo rate 100 >/proc/optbench")
    guest.run(f"echo run {SITE.removeprefix('optbench_')} >/proc/optbench")
    running = Ordered(guest, tmp_path)
    try:
        yield running
    finally:
        running.kill()
        guest.run("echo stop >/proc/optbench")
        assert all(errors == 0 for _, errors in bench_calls(guest).values())


def pokes_nothing(daemon: Running) -> bool:
    """Return whether the frozen daemon makes no pokes in some epochs."""
    before = daemon.wait_for(lambda status: status.phase is DaemonPhase.FROZEN)
    after = daemon.wait_for(lambda status: status.epoch > before.epoch + 5)
    return after.frozen and after.pokes == before.pokes


def follows(kinds: Sequence[object], wanted: Sequence[object]) -> bool:
    """Return whether ``wanted`` is a part of ``kinds`` without gaps."""
    size = len(wanted)
    return any(kinds[at : at + size] == wanted for at in range(len(kinds) - size + 1))


def test_what_is_ordered_is_done_and_explained(daemon: Ordered) -> None:
    daemon.wait_promoted()
    told = daemon.explain()
    (part,) = told.parts
    assert "__x86_indirect_thunk" in part.original.lines[0].text
    assert "<arena+" in part.standing.lines[0].text
    assert told.block is not None
    texts = [line.text for line in told.block.lines]
    assert any("cmp" in text and "<optbench_target_0 [optbench]>" in text for text in texts)
    assert "learning stub of" in texts[-1]
    kinds = [(event.kind, event.state or event.form) for event in told.history]
    assert follows(kinds, [("changed", "chain"), ("decided", "promoted")])
    assert ("decided", "learning") in kinds

    assert daemon.order("freeze").startswith("frozen")
    assert pokes_nothing(daemon)
    assert daemon.row().form == "chain"

    daemon.order("revert", "--all")
    daemon.wait_for(lambda status: status.arena.used_bytes == 0)
    assert daemon.row().form == "original"
    assert pokes_nothing(daemon)

    assert daemon.order("thaw").startswith("thawed")
    daemon.wait_promoted()

    daemon.order("revert", daemon.row().site)
    daemon.wait_for(lambda _: daemon.row().form == "original")
    assert (daemon.row().state, daemon.row().reason.split(":")[0]) == ("banned", "reverted by hand")
    daemon.order("relearn", daemon.row().site)
    daemon.wait_promoted()
    states = [event.state for event in daemon.explain().history if event.state]
    assert follows(states, ["promoted", "learning", "banned"])
    code, errors = daemon.end()
    assert code == 0, errors
    assert text_was_put_back(daemon)


def test_a_daemon_that_is_reverted_leaves_the_text_as_it_was(guest: Guest, daemon: Ordered) -> None:
    daemon.wait_promoted()
    promoted = kernel_text(guest)
    assert ask(daemon._status, Revert()).outcome == "done"
    daemon.wait_for(lambda status: status.frozen and status.arena.used_bytes == 0)
    reverted = kernel_text(guest)
    daemon.order("thaw")
    daemon.wait_promoted()
    code, errors = daemon.end()
    assert code == 0, errors
    assert reverted == kernel_text(guest)
    assert text_was_put_back(daemon)
    assert promoted != reverted


def test_orders_hold_on_after_a_death(guest: Guest, daemon: Ordered, tmp_path: Path) -> None:
    daemon.wait_promoted()
    daemon.order("revert", daemon.row().site)
    daemon.wait_for(lambda _: daemon.row().form == "original")
    daemon.order("freeze")
    daemon.kill()
    again = Ordered(guest, tmp_path)
    try:
        again.wait_for(lambda status: status.phase is DaemonPhase.FROZEN)
        assert again.row().reason.startswith("reverted by hand")
        again.order("thaw")
        again.order("relearn", again.row().site)
        again.wait_promoted()
        code, errors = again.end()
    finally:
        again.kill()
    assert code == 0, errors
    assert "what the last daemon was ordered holds on" in errors
    assert text_was_put_back(again)
    assert not list((guest.directory / "run").glob("*.orders"))
