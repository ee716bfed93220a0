"""Sites of each kind under the command itself: where they end, why, and how soon."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest.image.boot import Guest
from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import ORIGINAL, Chain, Form
from optpolined.config import LearningConfig
from optpolined.lab.actual_calls import find_actual_calls
from optpolined.lab.replay import replay_recorded
from optpolined.learning.trace.file import read_traces
from optpolined.learning.trace.model import Trace
from optpolined.telemetry.server import status_socket
from tests.guest.harness import bench_calls, write_config

COMMANDS = Path(sys.executable).parent

PROMOTE_EPOCHS = 3
SETTINGS = f"""
[policy]
mode = "opt-in"
include = ["optbench:optbench_call_*"]
[learning]
epoch_milliseconds = 300
[learning.hysteresis]
promote_share = 0.8  # nine calls of ten go to the hot target, give or take a few
promote_epochs = {PROMOTE_EPOCHS}
learn_epochs = 5
"""

_PATIENCE_SECONDS = 90


class Daemon:
    """A daemon at work on a guest."""

    def __init__(self, directory: Path, process: "subprocess.Popen[str]") -> None:
        self.directory = directory
        self.process = process
        self.log = directory / "log"
        self.trace = directory / "run.trace"

    def ctl(self, *arguments: str) -> str:
        """What optpolinectl prints."""
        command: list[str | Path] = [COMMANDS / "optpolinectl", *arguments, "--guest", "test"]
        result = subprocess.run(
            [*command, "--config-dir", self.directory],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        said: str = result.stdout
        return said

    def site(self, function: str) -> dict[str, str]:
        """Where the one site of a function of optbench stands, and why."""
        said = json.loads(self.ctl("sites", f"optbench:optbench_{function}", "--json"))
        (row,) = said["sites"]
        targets = [target["name"].partition(" ")[0] for target in row["targets"]]
        told = {key: row[key] for key in ("site", "state", "reason")}
        return told | {"targets": ", ".join(targets)}

    def wait(self, function: str, state: str, targets: str) -> dict[str, str]:
        """The same, as soon as it is in this state and has these targets."""
        seen: list[dict[str, str]] = []
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            row = self.site(function)
            if (row["state"], row["targets"]) == (state, targets):
                return row
            if not seen or seen[-1] != row:
                seen.append(row)
            time.sleep(0.2)
        pytest.fail(f"{function} was never {state}: {seen}; {self.log.read_text()}")

    def wait_log(self, text: str) -> str:
        """The one line of the log that has ``text``."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            lines = [line for line in self.log.read_text().splitlines() if text in line]
            if lines:
                (line,) = lines
                return line
            time.sleep(0.1)
        pytest.fail(f"{text!r} is not in the log: {self.log.read_text()}")

    def end(self) -> Trace:
        """Let it leave; the text is what it was, and a replay decides what it decided."""
        self.process.terminate()
        assert self.process.wait(120) == 0, self.log.read_text()
        report = json.loads((self.directory / "report.json").read_text())
        assert report["text_identical_after_detach"] is True
        result = subprocess.run(
            [COMMANDS / "optpolined", "replay", self.trace],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, "")
        (trace,) = read_traces(self.trace)
        assert replay_recorded(trace, find_actual_calls(trace)).differs_at is None
        return trace


@contextmanager
def daemon(guest: Guest, directory: Path) -> Iterator[Daemon]:
    """A daemon that records, and is attached."""
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
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not socket.exists():
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield Daemon(directory, process)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(120)


@contextmanager
def bench(guest: Guest, *commands: str) -> Iterator[None]:
    """optbench at work; every call is checked."""
    for command in ("reset", "rate 5", *commands):
        guest.run(f"echo {command} >/proc/optbench")
    try:
        yield
    finally:
        for command in ("stop", "phase auto", "period 2000", "rate 1"):
            guest.run(f"echo {command} >/proc/optbench")
    assert not any(errors for _, errors in bench_calls(guest).values())


def standing_at_last(trace: Trace) -> dict[str, Form]:
    """What stood in the last epoch, by the name of the site's function."""
    *_, (_, forms) = trace.standing()
    return {function_of(trace, site): form for site, form in forms.items()}


def function_of(trace: Trace, site: GuestVirtual) -> str:
    return trace.names[site].partition("+")[0].removeprefix("optbench_")


def names(trace: Trace, form: Form) -> list[str]:
    assert isinstance(form, Chain)
    return [trace.names[target].partition(" ")[0] for target in form.targets]


def test_each_kind_of_site_ends_where_the_policy_says(guest: Guest, tmp_path: Path) -> None:
    kinds = ("call_1", "call_2_skewed", "call_4_skewed", "call_16_random", "call_16_phase")
    running = [f"run {kind}" for kind in kinds]
    with (
        bench(guest, "phase auto", "period 2500", *running),
        daemon(guest, tmp_path) as run,
    ):
        run.ctl("pin", run.site("call_2_skewed")["site"], "optbench_target_1")
        run.ctl("ban", "optbench:optbench_call_4_*")
        steady = run.wait("call_1", "promoted", "optbench_target_0")
        assert "100% of" in steady["reason"]
        pinned = run.wait("call_2_skewed", "pinned", "optbench_target_1")
        assert pinned["reason"].startswith("pinned to optbench_target_1")
        banned = run.wait("call_4_skewed", "banned", "")
        assert banned["reason"] == "banned by 'optbench:optbench_call_4_*'"
        many = run.wait("call_16_random", "megamorphic", "")
        assert " needed" in many["reason"]
        cold = run.wait("call_2_random", "cold", "")
        assert cold["reason"] == "under 20 calls/s in most of the window"
        flapping = run.wait("call_16_phase", "quarantine", "")
        assert "too soon after its last change" in flapping["reason"] or (
            f"no {PROMOTE_EPOCHS} epochs agreed" in flapping["reason"]
        )
        assert run.site("call_2_skewed") == pinned
        assert run.site("call_4_skewed") == banned
        trace = run.end()
    standing = standing_at_last(trace)
    assert names(trace, standing["call_2_skewed"]) == ["optbench_target_1"]
    assert names(trace, standing["call_1"]) == ["optbench_target_0"]
    assert not {"call_4_skewed", "call_16_random", "call_2_random"} & standing.keys()


def test_a_hang_up_changes_policy_and_learning_while_attached(guest: Guest, tmp_path: Path) -> None:
    with (
        bench(guest, "run call_1", "run call_2_skewed", "run call_4_skewed"),
        daemon(guest, tmp_path) as run,
    ):
        file = tmp_path / "test.toml"
        first = file.read_text()
        run.ctl("pin", run.site("call_2_skewed")["site"], "optbench_target_1")
        run.wait("call_1", "promoted", "optbench_target_0")
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
        # The pin was asked for, and is not in the file: the site learns, by what holds now.
        cold = run.wait("call_2_skewed", "cold", "")
        assert cold["reason"] == "under 9e+08 calls/s in most of the window"
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
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while f"optbench_target_{phase}," not in f"{run.site('call_16_phase')['targets']},":
                assert time.monotonic() < deadline, run.site("call_16_phase")
                time.sleep(0.2)
            time.sleep(3)  # some epochs more
        trace = run.end()
    for phase in changes:
        assert 0 < epochs_to(trace, f"optbench_target_{phase}") <= PROMOTE_EPOCHS + 1


def epochs_to(trace: Trace, hot: str) -> int:
    """From the first epoch in which most of the calls that were counted went to ``hot``.

    To the first in which it is called directly.  Only the misses are counted, so a function that
    becomes hot in the middle of an epoch is seen in that one.
    """
    first = None
    for place, (epoch, forms) in enumerate(trace.standing()):
        for site, by_cpu in epoch.counts.items():
            calls: dict[str, int] = {}
            for gain in by_cpu.values():
                for target, count in gain.calls.items():
                    called = trace.names[target].partition(" ")[0]
                    calls[called] = calls.get(called, 0) + count
            form = forms.get(site, ORIGINAL)
            if isinstance(form, Chain) and hot in names(trace, form):
                assert first is not None
                return place - first
            if first is None and 2 * calls.get(hot, 0) > sum(calls.values()):
                first = place
    pytest.fail(f"{hot} is never called directly")
