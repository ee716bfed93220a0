"""The status socket, and the command that reads it."""

import json
import stat
from pathlib import Path

import pytest

from optpolined import ctl
from optpolined.api.request_queue import RequestQueue
from optpolined.api.status import DaemonPhase, HotSite, Status
from optpolined.telemetry.server import serve_status, status_socket
from optpolined.telemetry.socket_client import read_status

STATUS = Status(
    "vm1",
    DaemonPhase.RUNNING,
    states={"promoted": 61},
    hottest=(HotSite("vfs_read+0x1f", ("pipe_read",), 1e4, 0.0),),
)


def config(directory: Path) -> list[str]:
    (directory / "vm1.toml").write_text(
        f'runtime_directory = "{directory}"\n[qemu]\nqmp_socket = "/run/vm1.qmp"\n'
    )
    return ["status", "--guest", "vm1", "--config-dir", str(directory)]


def test_what_is_served_is_what_is_read(tmp_path: Path) -> None:
    path = status_socket(tmp_path, "vm1")
    with serve_status(path, lambda: STATUS, RequestQueue()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for _ in range(2):
            status = read_status(path)
            assert status.phase is DaemonPhase.RUNNING
            assert status.states == {"promoted": 61}
    assert not path.exists()


def test_a_socket_that_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    path = status_socket(tmp_path, "vm1")
    path.touch()
    with serve_status(path, lambda: STATUS, RequestQueue()):
        assert read_status(path).guest == "vm1"


def test_the_command_prints_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = config(tmp_path)
    with serve_status(status_socket(tmp_path, "vm1"), lambda: STATUS, RequestQueue()):
        assert ctl.main(arguments) == 0
        assert "promoted 61" in capsys.readouterr().out
        assert ctl.main([*arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["hottest"][0]["site"] == "vfs_read+0x1f"


def test_without_a_daemon_the_command_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl.main(config(tmp_path)) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "start it with `optpolined --guest vm1`" in complaint


def test_an_unknown_guest_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(["status", "--guest", "vm9", "--config-dir", str(tmp_path)]) == 2
    assert "no configuration for guest 'vm9'" in capsys.readouterr().err
