"""Sites of each kind under the command itself: their last state, its reason, and how soon."""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import dropwhile
from pathlib import Path

import pytest

from guest.image.boot import Guest
from optpolined.addresses import GuestVirtual
from optpolined.api.errors import NoAnswerError
from optpolined.api.status import DaemonPhase
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.config import LearningConfig
from optpolined.lab.actual_calls import find_actual_calls
from optpolined.lab.replay import replay_recorded
from optpolined.learning.trace.model import Trace
from optpolined.learning.trace.reader import read_traces
from optpolined.telemetry.server import status_socket
from optpolined.telemetry.socket_client import read_status
from tests.guest.harness import PATIENCE_SECONDS, bench_calls, wait_until, write_config
from tests.guest.running import LEARN_BY_STUBS

COMMANDS = Path(sys.executable).parent

PROMOTE_EPOCHS = 3
DEMOTE_SHARE = LearningConfig().hysteresis.demote_share
SETTINGS = f"""
[policy]
mode = "opt-in"
include = ["optbench:optbench_call_*"]
[learning]
epoch_milliseconds = 300
{LEARN_BY_STUBS}[learning.hysteresis]
promote_share = 0.8  # nine calls of ten go to the hot target, give or take a few
promote_epochs = {PROMOTE_EPOCHS}
learn_epochs = 5
"""


class Daemon:
    """A daemon at work on a guest."""

    def __init__(self, directory: Path, process: "subprocess.Popen[str]", status: Path) -> None:
        self.directory = directory
        self.process = process
        self.log = directory / "log"
        self.trace = directory / "run.trace"
        self._status = status

    def ctl(self, *arguments: str) -> str:
        """Run optpolinectl; return what it prints."""
        command: list[str | Path] = [COMMANDS / "optpolinectl", *arguments, "--guest", "test"]
        result = subprocess.run(
            [*command, "--config-dir", self.directory],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        said: str = result.stdout
        return said

    def site(self, function: str) -> dict[str, str]:
        """Return state, reason and targets of the one site of a function of optbench."""
        said = json.loads(self.ctl("sites", f"optbench:optbench_{function}", "--json"))
        (row,) = said["sites"]
        targets = [target["name"].partition(" ")[0] for target in row["targets"]]
        told = {key: row[key] for key in ("site", "state", "reason")}
        return told | {"targets": ", ".join(targets)}

    def wait(self, function: str, state: str, targets: str, *reasons: str) -> dict[str, str]:
        """Wait until the site is in this state, has these targets, and tells one of ``reasons``.

        No reasons are any reason.
        """
        return self.wait_site(
            function,
            f"is {state} with the targets {targets!r}: {reasons}",
            lambda row: (
                (row["state"], row["targets"]) == (state, targets)
                and (not reasons or any(reason in row["reason"] for reason in reasons))
            ),
        )

    def wait_site(
        self, function: str, what: str, holds: Callable[[dict[str, str]], bool]
    ) -> dict[str, str]:
        """Wait until what :meth:`site` returns holds, and return it."""
        return wait_until(lambda: self.site(function), f"{function} {what}", holds)

    def wait_epochs(self, count: int) -> None:
        """Let that many epochs pass."""
        first = read_status(self._status).epoch
        wait_until(
            lambda: read_status(self._status).epoch,
            f"{count} epochs after {first}",
            lambda epoch: epoch >= first + count,
        )

    def wait_log(self, text: str) -> str:
        """Wait for the one line of the log that has ``text``, and return it."""

        def look() -> list[str]:
            lines = self.log.read_text().splitlines(keepends=True)
            return [line for line in lines if text in line and line.endswith("\n")]

        (line,) = wait_until(look, f"the log says {text!r}")
        return line

    def end(self) -> Trace:
        """End it; check that the text is what it was, and that a replay decides the same."""
        self.process.terminate()
        assert self.process.wait(PATIENCE_SECONDS) == 0, self.log.read_text()
        report = json.loads((self.directory / "report.json").read_text())
        assert report["text_identical_after_detach"] is True
        result = subprocess.run(
            [COMMANDS / "optpolined", "replay", self.trace],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, "")
        (trace,) = read_traces(self.trace)
        assert replay_recorded(trace, find_actual_calls(trace)).differs_at is None
        return trace


@contextmanager
def daemon(guest: Guest, directory: Path) -> Iterator[Daemon]:
    """Start a daemon that records, and wait until it is attached."""
    write_config(guest, directory, SETTINGS)
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *(COMMANDS / "optpolined", "--guest", "test", "--config-dir", directory),
                *("--record", directory / "run.trace", "--report", directory / "report.json"),
            ],
            stdout=log,
            stderr=log,
            text=True,
        )
    try:
        socket = status_socket(guest.directory / "run", "test")

        def answers() -> bool:
            assert process.poll() is None, (directory / "log").read_text()
            try:
                return read_status(socket).phase is not DaemonPhase.ATTACHING
            except NoAnswerError:
                # A daemon that was killed may have left its socket.
                return False

        wait_until(answers, "the daemon is attached")
        yield Daemon(directory, process, socket)
    finally:
        try:
            if process.poll() is None:
                process.terminate()
                process.wait(PATIENCE_SECONDS)
        finally:
            process.kill()
            process.wait()


@contextmanager
def bench(guest: Guest, *commands: str) -> Iterator[None]:
    """Run scenarios of optbench; at the end check that all calls were right."""
    for command in ("reset", "rate 5", *commands):
        guest.run(f"echo {command} >/proc/optbench")
    try:
        yield
    finally:
        for command in ("stop", "phase auto", "period 2000", "rate 1"):
            guest.run(f"echo {command} >/proc/optbench")
    assert not any(errors for _, errors in bench_calls(guest).values())


def standing_at_last(trace: Trace) -> dict[str, Form]:
    """Return the forms of the last epoch, by the name of the site's function."""
    *_, (_, forms) = trace.standing()
    return {function_of(trace, site): form for site, form in forms.items()}


def function_of(trace: Trace, site: GuestVirtual) -> str:
    return trace.names[site].partition("+")[0].removeprefix("optbench_")


def names(trace: Trace, form: Form) -> list[str]:
    assert isinstance(form, Chain)
    return [trace.names[target].partition(" ")[0] for target in form.targets]


def decisions(trace: Trace, function: str) -> list[Form]:
    """Return all decisions of the trace on the site of a function, in order."""
    return [
        form
        for epoch in trace.epochs
        for site, form in epoch.wanted.items()
        if function_of(trace, site) == function
    ]


def only_windows(decided: Sequence[Form]) -> bool:
    """Return whether a site learned, was put back after each window, and got no other form.

    The trace may end within a window.
    """
    windows = [LEARNING, ORIGINAL] * len(decided)
    return len(decided) >= 2 and list(decided) == windows[: len(decided)]


def stands_since(trace: Trace, function: str) -> list[Form]:
    """Return the form of the site of a function in each epoch, from its first promotion on."""
    stood = [
        {function_of(trace, site): form for site, form in forms.items()}.get(function, ORIGINAL)
        for _, forms in trace.standing()
    ]
    return list(dropwhile(lambda form: not isinstance(form, Chain) or not form.targets, stood))


def test_each_kind_of_site_ends_where_the_policy_says(guest: Guest, tmp_path: Path) -> None:
    kinds = ("call_1", "call_2_skewed", "call_4_skewed", "call_16_random", "call_16_phase")
    running = [f"run {kind}" for kind in kinds]
    with (
        bench(guest, "phase auto", "period 2500", *running),
        daemon(guest, tmp_path) as run,
    ):
        run.ctl("pin", run.site("call_2_skewed")["site"], "optbench_target_1")
        run.ctl("ban", "optbench:optbench_call_4_*")
        run.wait("call_1", "promoted", "optbench_target_0", "100% of")
        pinned = run.wait("call_2_skewed", "pinned", "optbench_target_1")
        assert pinned["reason"].startswith("pinned to optbench_target_1")
        banned = run.wait("call_4_skewed", "banned", "")
        assert banned["reason"] == "banned by 'optbench:optbench_call_4_*'"
        run.wait("call_16_random", "megamorphic", "", " needed")
        run.wait("call_2_random", "cold", "", "under 20 calls/s in most of the window")
        run.wait(
            *("call_16_phase", "quarantine", "", "too soon after its last change"),
            f"no {PROMOTE_EPOCHS} epochs agreed",
        )
        # Nothing but another order changes what the operator decided.
        assert run.site("call_2_skewed") == pinned
        assert run.site("call_4_skewed") == banned
        trace = run.end()
    # Both are given another window now and then, which may be open when the trace ends.
    assert only_windows(decisions(trace, "call_2_random"))
    assert only_windows(decisions(trace, "call_16_random"))
    steady = stands_since(trace, "call_1")
    assert steady
    assert all(names(trace, form) == ["optbench_target_0"] for form in steady)
    standing = standing_at_last(trace)
    assert names(trace, standing["call_2_skewed"]) == ["optbench_target_1"]
    assert "call_4_skewed" not in standing


def test_a_hang_up_changes_policy_and_learning_while_attached(guest: Guest, tmp_path: Path) -> None:
    with (
        bench(guest, "run call_1", "run call_2_skewed", "run call_4_skewed"),
        daemon(guest, tmp_path) as run,
    ):
        file = tmp_path / "test.toml"
        first = file.read_text()
        run.ctl("pin", run.site("call_2_skewed")["site"], "optbench_target_1")
        run.wait("call_1", "promoted", "optbench_target_0")
        run.wait_site("call_4_skewed", "is promoted", lambda row: row["state"] == "promoted")
        file.write_text(first.replace("0.8  #", "8.0  #"))
        run.process.send_signal(signal.SIGHUP)
        complaint = run.wait_log("the configuration stays as it is")
        assert "promote_share = 8.0" in complaint
        file.write_text(first)  # optpolinectl reads it too
        assert run.site("call_1")["state"] == "promoted"
        file.write_text(
            first.replace("[qemu]", "[qemu]\nanswer_timeout_seconds = 20.0")
            .replace("[learning]", 'bans = ["optbench:optbench_call_1"]\n[learning]')
            .replace("[learning.hysteresis]", "[learning.hysteresis]\nmin_calls_per_second = 9e8")
        )
        run.process.send_signal(signal.SIGHUP)
        line = run.wait_log("read again")
        assert "changed: learning.hysteresis.min_calls_per_second, policy.bans;" in line
        assert "only a restart changes qemu.answer_timeout_seconds" in line
        assert run.wait("call_1", "banned", "")["reason"] == "banned by 'optbench:optbench_call_1'"
        # The pin is not in the file: the site learns by the new settings.
        run.wait("call_2_skewed", "cold", "", "under 9e+08 calls/s in most of the window")
        # What was decided before stays.
        assert run.site("call_4_skewed")["state"] == "promoted"
        trace = run.end()
    said = [said for epoch in trace.epochs for said in epoch.said]
    (learning,) = (said for said in said if isinstance(said, LearningConfig))
    assert learning.hysteresis.min_calls_per_second == 9e8
    assert "call_1" not in standing_at_last(trace)


def test_after_a_phase_change_the_right_target_stands_in_time(guest: Guest, tmp_path: Path) -> None:
    with (
        bench(guest, "phase 0", "run call_16_phase"),
        daemon(guest, tmp_path) as run,
    ):
        run.wait("call_16_phase", "promoted", "optbench_target_0")
        changes = (5, 9)
        for phase in changes:
            guest.run(f"echo phase {phase} >/proc/optbench")
            run.wait_site(
                "call_16_phase",
                f"calls optbench_target_{phase} directly",
                partial(calls_directly, f"optbench_target_{phase}"),
            )
            run.wait_epochs(10)
        trace = run.end()
    for phase in changes:
        assert 0 < epochs_to(trace, f"optbench_target_{phase}") <= PROMOTE_EPOCHS + 1


def calls_directly(target: str, row: dict[str, str]) -> bool:
    return target in row["targets"].split(", ")


def epochs_to(trace: Trace, hot: str) -> int:
    """Count the epochs from when most of the counted calls go to ``hot`` to when it is direct.

    An epoch in which the guest hardly ran says little, and does not count.  Only the misses of a
    promoted site are counted, so a function that becomes hot in the middle of an epoch is seen in
    that one.
    """
    rate = 0.0
    first, telling = None, 0
    for place, (epoch, forms) in enumerate(trace.standing()):
        for site, by_cpu in epoch.counts.items():
            calls: Counter[str] = Counter()
            for gain in by_cpu.values():
                for target, count in gain.calls.items():
                    calls[trace.names[target].partition(" ")[0]] += count
            form = forms.get(site, ORIGINAL)
            if isinstance(form, Chain) and hot in names(trace, form):
                assert first is not None
                return telling
            if first is None and 2 * calls[hot] > calls.total():
                first = place
            if first is not None and calls[hot] > DEMOTE_SHARE * rate * epoch.seconds:
                telling += 1
            rate = max(rate, calls.total() / epoch.seconds)
    pytest.fail(f"{hot} is never called directly")
