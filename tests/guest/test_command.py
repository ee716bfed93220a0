"""The command, run as its users run it."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from guest.image.boot import Guest
from optpolined.lab.actual_calls import find_actual_calls
from optpolined.lab.replay import replay_recorded
from optpolined.learning.trace.file import read_traces
from tests.guest.harness import load_state, write_config

COMMAND = Path(sys.executable).with_name("optpolined")


def optpolined(
    *arguments: object, timeout_seconds: float = 240
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def one_line(result: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The complaint: one line, with the exit code of bad input."""
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    assert result.returncode == code, result.stderr
    return lines[0]


def test_a_dry_run_says_what_there_is_and_changes_nothing(guest: Guest, tmp_path: Path) -> None:
    write_config(guest, tmp_path)
    result = optpolined("--guest", "test", "--config-dir", tmp_path, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "6.1" in result.stdout
    assert "eligible" in result.stdout
    assert not (guest.directory / "run").exists() or not list(
        (guest.directory / "run").glob("gdb-*.sock")
    )


def test_a_short_run_promotes_and_restores(guest: Guest, tmp_path: Path) -> None:
    """What `make demo` does, in small."""
    guest.run("optload --state /run/optload >/dev/null 2>&1 &")
    write_config(guest, tmp_path, "[learning]\nepoch_milliseconds = 500\n")
    report_file = tmp_path / "report.json"
    result = optpolined(
        *("--guest", "test", "--config-dir", tmp_path),
        *("--duration", 40, "--audit", "--report", report_file),
        *("--record", tmp_path / "run.trace"),
    )
    guest.run("killall optload; sleep 1")
    assert result.returncode == 0, result.stderr
    report = json.loads(report_file.read_text())
    assert report["text_identical_after_detach"] is True
    assert report["sites"]["found"] >= 7000
    assert report["promoted"] >= 30
    assert report["coverage"] >= 0.7
    assert sum(report["targets_histogram"].values()) == report["promoted"]
    assert report["stops"]["count"] > 0
    assert load_state(guest)["errors"] == 0
    assert "NOT identical" not in result.stdout
    check_recording(tmp_path / "run.trace", report["kernel"])


def check_recording(path: Path, kernel: str) -> None:
    """A replay decides what the daemon decided, and the rivals find calls to decide on."""
    (trace,) = read_traces(path)
    assert trace.header.release == kernel
    assert len(trace.header.build_id) == 40
    assert not trace.is_cut
    assert {cpu for epoch in trace.epochs for by_cpu in epoch.counts.values() for cpu in by_cpu} > {
        0
    }
    assert all(trace.names[site] for epoch in trace.epochs for site in epoch.counts)
    assert any(epoch.wanted for epoch in trace.epochs)
    assert replay_recorded(trace, find_actual_calls(trace)).differs_at is None
    result = optpolined("replay", path, "--json")
    assert result.returncode == 0
    assert not result.stderr
    rows = json.loads(result.stdout)
    assert [row["strategy"] for row in rows] == ["hysteresis (recorded)", "continuous", "epoch"]
    # None at all where the run ended soon after its first promotions.
    assert all(0 <= row["coverage"] <= 1 for row in rows)


def test_an_interrupt_restores_first(guest: Guest, tmp_path: Path) -> None:
    write_config(guest, tmp_path)
    report_file = tmp_path / "report.json"
    process = subprocess.Popen(
        [COMMAND, "--guest", "test", "--config-dir", tmp_path, "--report", report_file],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(12)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert json.loads(report_file.read_text())["text_identical_after_detach"] is True


def test_a_second_daemon_is_refused(guest: Guest, tmp_path: Path) -> None:
    write_config(guest, tmp_path)
    with subprocess.Popen(
        [COMMAND, "--guest", "test", "--config-dir", tmp_path, "--duration", "1000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as first:
        deadline = time.monotonic() + 60
        while not list((guest.directory / "run").glob("gdb-*.sock")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "another" in one_line(optpolined("--guest", "test", "--config-dir", tmp_path))
        other = tmp_path / "other"
        other.mkdir()
        (other / "test.toml").write_text(
            (tmp_path / "test.toml").read_text().replace(str(guest.qmp), str(guest.side_qmp))
        )
        complaint = one_line(optpolined("--guest", "test", "--config-dir", other))
        assert "another optpolined serves this guest" in complaint
        first.terminate()
        assert first.wait(120) == 0


def test_a_gdb_that_is_connected_keeps_its_stub(boot: Callable[..., Guest], tmp_path: Path) -> None:
    guest = boot(with_gdbstub=True)
    write_config(guest, tmp_path)
    with socket.socket(socket.AF_UNIX) as gdb:
        gdb.connect(str(guest.gdb))
        time.sleep(0.5)
        complaint = one_line(optpolined("--guest", "test", "--config-dir", tmp_path))
        assert "a gdb is connected" in complaint


def test_a_guest_without_the_module(boot: Callable[..., Guest], tmp_path: Path) -> None:
    guest = boot(append="noload")
    write_config(guest, tmp_path)
    complaint = one_line(optpolined("--guest", "test", "--config-dir", tmp_path))
    assert "modprobe optpoline" in complaint


def test_a_guest_without_retpolines_has_nothing_to_gain(
    boot: Callable[..., Guest], tmp_path: Path
) -> None:
    guest = boot(append="spectre_v2=off")
    write_config(guest, tmp_path)
    complaint = one_line(optpolined("--guest", "test", "--config-dir", tmp_path), code=0)
    assert "without retpolines" in complaint
    forced = optpolined(*("--guest", "test", "--config-dir", tmp_path, "--force", "--duration", 1))
    assert forced.returncode == 0, forced.stderr


def test_bad_input_gets_one_line(tmp_path: Path) -> None:
    complaint = one_line(optpolined("--guest", "nobody", "--config-dir", tmp_path))
    assert "no configuration for guest 'nobody'" in complaint

    config = tmp_path / "test.toml"
    for text, expected in (
        ("[qemu\n", "not valid TOML"),
        ("[qemu]\nqmp_socket = '/x'\nqmp = 1\n", "qemu.qmp: unknown key"),
        (f"[qemu]\nqmp_socket = '{tmp_path}/absent'\n", "absent"),
        (f"[qemu]\nqmp_socket = '{config}'\n", "test.toml"),
    ):
        config.write_text(text)
        assert expected in one_line(optpolined("--guest", "test", "--config-dir", tmp_path))


def test_a_socket_that_is_not_qmp_gets_one_line(tmp_path: Path) -> None:
    path = tmp_path / "not-qmp"
    (tmp_path / "test.toml").write_text(f"[qemu]\nqmp_socket = '{path}'\n")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with subprocess.Popen(
            [COMMAND, "--guest", "test", "--config-dir", tmp_path],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            client, _ = server.accept()
            with client:
                client.sendall(b"220 mail.example ESMTP\r\n")
                _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert len(errors.splitlines()) == 1, errors
