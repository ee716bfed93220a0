"""The command, run as its users run it."""

import json
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guest.image.boot import Guest
from optpolined.lab.actual_calls import find_actual_calls
from optpolined.lab.replay import replay_recorded
from optpolined.learning.trace.reader import read_traces
from optpolined.qemu.monitor import Monitor
from tests.guest.command import COMMAND, one_line, optpolined
from tests.guest.harness import (
    PATIENCE_SECONDS,
    end_load,
    start_load,
    wait_until,
    write_config,
)
from tests.guest.running import AT_WORK, Running, text_was_put_back

DURATIONS_SECONDS = (40, 80, 160)
"""A run has a fixed end before its audit; a busy machine needs a longer run."""


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
    """Do in small what `make demo` does."""
    start_load(guest)
    write_config(guest, tmp_path, "[learning]\nepoch_milliseconds = 500\n")
    for seconds in DURATIONS_SECONDS:
        report = run_for(seconds, tmp_path)
        if report["promoted"] >= 30 and report["coverage"] >= 0.7:
            break
    assert report["promoted"] >= 30
    assert report["coverage"] >= 0.7
    end_load(guest)
    check_recording(tmp_path / "run.trace", report["kernel"])


def run_for(seconds: int, directory: Path) -> dict[str, Any]:
    """Run the daemon for so long, with an audit and a recording; what it reports must be right."""
    report_file = directory / "report.json"
    result = optpolined(
        *("--guest", "test", "--config-dir", directory),
        *("--duration", seconds, "--audit", "--report", report_file),
        *("--record", directory / "run.trace"),
        timeout_seconds=seconds + PATIENCE_SECONDS,
    )
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(report_file.read_text())
    assert report["text_identical_after_detach"] is True
    assert report["sites"]["found"] >= 7000
    assert sum(report["targets_histogram"].values()) == report["promoted"]
    assert report["stops"]["count"] > 0
    assert "NOT identical" not in result.stdout
    return report


def check_recording(path: Path, kernel: str) -> None:
    """Check that a replay decides what the daemon decided, and that the rivals find calls."""
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
    assert [row["strategy"] for row in rows] == ["hysteresis (recorded)", "continuous", "periodic"]
    # The coverage is 0 where the run ended soon after its first promotions.
    assert all(0 <= row["coverage"] <= 1 for row in rows)


def test_an_interrupt_restores_first(guest: Guest, tmp_path: Path) -> None:
    daemon = Running(guest, tmp_path)
    try:
        daemon.wait_patched()
        daemon.process.send_signal(signal.SIGINT)
        code, errors = daemon.wait_end()
    finally:
        daemon.kill()
    assert code == 0, errors
    assert text_was_put_back(daemon)


def test_a_second_daemon_is_refused(guest: Guest, tmp_path: Path) -> None:
    first = Running(guest, tmp_path)
    try:
        first.wait_for(lambda status: status.phase in AT_WORK)
        assert "another" in one_line(optpolined("--guest", "test", "--config-dir", tmp_path))
        other = tmp_path / "other"
        other.mkdir()
        (other / "test.toml").write_text(
            (tmp_path / "test.toml").read_text().replace(str(guest.qmp), str(guest.side_qmp))
        )
        complaint = one_line(optpolined("--guest", "test", "--config-dir", other))
        assert "another optpolined serves this guest" in complaint
        code, errors = first.end()
        assert code == 0, errors
    finally:
        first.kill()


def test_a_gdb_that_is_connected_keeps_its_stub(boot: Callable[..., Guest], tmp_path: Path) -> None:
    guest = boot(with_gdbstub=True)
    write_config(guest, tmp_path)
    with socket.socket(socket.AF_UNIX) as gdb:
        gdb.connect(str(guest.gdb))
        with Monitor.connect(guest.side_qmp) as monitor:
            # QEMU stops the guest for a debugger that connects.
            wait_until(monitor.status, "QEMU sees the gdb", lambda status: status == "paused")
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
                _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2
    assert len(errors.splitlines()) == 1, errors
