"""A guest vm1 with a configuration, and the command."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from optpolined.ctl import main

Command = Callable[..., tuple[int, str, str]]
"""Takes arguments; gives the exit code, and what stdout and stderr got."""


def write_config(directory: Path, runtime: Path) -> None:
    (directory / "vm1.toml").write_text(
        f'runtime_directory = "{runtime}"\n[qemu]\nqmp_socket = "{runtime}/vm1.qmp"\n'
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Has vm1.toml, and is where its daemon's socket goes."""
    write_config(tmp_path, tmp_path)
    return tmp_path


@pytest.fixture
def command(directory: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str, guest: str = "vm1") -> tuple[int, str, str]:
        where: Sequence[str] = ("--guest", guest, "--config-dir", str(directory))
        code = main([*arguments, *where])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run
