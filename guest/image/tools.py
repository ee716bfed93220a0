"""Run the tools of a build: quiet unless they fail."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from guest.image.errors import GuestError

__all__ = ("progress", "run")

# A surrounding make must not tell the makes inside how to behave.
_NOT_INHERITED = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")


def progress(text: str) -> None:
    """Print a line about something that takes longer than a reader's patience."""
    print(f"image: {text}", flush=True)  # noqa: T201  a command's own output


def run(
    command: Sequence[str | Path],
    *,
    error: type[GuestError],
    what: str,
    cwd: Path | None = None,
    stdin: bytes | None = None,
) -> bytes:
    """Run ``command`` and return its standard output.

    :param what: what the command is for, as "cannot ..." goes on in the error's message.
    :raise GuestError: of the class ``error``, with the command's last lines.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    environment |= {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(  # noqa: PLW1510  the exit code is looked at below
            command, cwd=cwd, input=stdin, capture_output=True, env=environment
        )
    except FileNotFoundError as absent:
        raise error(f"cannot {what}: {absent.filename} is missing (make setup)") from absent
    if done.returncode != 0:
        printed = (done.stdout + done.stderr if stdin is None else done.stderr).decode(
            errors="replace"
        )
        last = "\n".join(printed.strip().splitlines()[-40:])
        raise error(f"cannot {what}: {' '.join(map(str, command))}: {last}")
    return done.stdout
