"""The commands, run as their users run them."""

import subprocess
import sys
from pathlib import Path

from tests.guest.harness import PATIENCE_SECONDS

__all__ = ("COMMAND", "one_line", "optpolined")

COMMAND = Path(sys.executable).with_name("optpolined")


def optpolined(
    *arguments: object, timeout_seconds: float = PATIENCE_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run `optpolined` until it ends."""
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def one_line(result: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """Return the complaint: one line, with the exit code of bad input."""
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    assert result.returncode == code, result.stderr
    return lines[0]
