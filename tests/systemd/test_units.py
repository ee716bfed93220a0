"""systemd checks the units; no service is started."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path("configs/systemd")
SYSTEM_UNITS = Path("lib/systemd/system")


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a root with the system's units and ours, and the programs that ours start; run none."""
    shutil.copytree("/" / SYSTEM_UNITS, tmp_path / SYSTEM_UNITS, symlinks=True)
    for unit in UNITS.iterdir():
        shutil.copy(unit, tmp_path / SYSTEM_UNITS)
    for command in ("usr/bin/optpolined", "usr/bin/optpolinectl", "bin/sh"):
        path = tmp_path / command
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o755)
    return tmp_path


def test_systemd_has_nothing_to_say_of_the_units(root: Path) -> None:
    result = analyze("verify", f"--root={root}", "optpolined@vm1.service", "optpolined.target")
    ours = [line for line in result.stderr.splitlines() if "optpoline" in line]
    assert ours == []
    assert result.returncode == 0, result.stderr


def test_a_wrong_line_would_be_found(root: Path) -> None:
    unit = root / SYSTEM_UNITS / "optpolined@.service"
    unit.write_text(unit.read_text().replace("KillMode=process", "KillMode=gently"))
    result = analyze("verify", f"--root={root}", "optpolined@vm1.service")
    assert "gently" in result.stderr


def test_little_is_exposed() -> None:
    """--threshold is ten times the figure shown; allow at most 2.5."""
    result = analyze(
        *("security", "--offline=true", "--threshold=25", "--no-pager"),
        UNITS / "optpolined@.service",
    )
    assert result.returncode == 0, result.stdout
    assert "Overall exposure level" in result.stdout
