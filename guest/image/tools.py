"""Runs the tools of a build, quietly unless they fail."""

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from guest.image.errors import GuestError

__all__ = ("follow", "progress", "run")

# A surrounding make must not tell the makes inside how to behave.
_NOT_INHERITED = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")

# The kernel may be built by another update of the same compiler; our code does not depend on it.
_WARNING = re.compile(
    rb"^(?!warning: the compiler differs).*\bwarning:.*", re.IGNORECASE | re.MULTILINE
)

# How many of the last lines of a failed command an error shows.
_LAST_LINES = 40


def progress(text: str) -> None:
    """Print a line before a step that takes long."""
    print(f"image: {text}", flush=True)  # noqa: T201  a command's own output


def run(
    command: Sequence[str | Path],
    *,
    error: type[GuestError],
    what: str,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    warnings_fail: bool = False,
) -> bytes:
    """Run ``command`` and return its standard output.

    :param what: what the command is for, as "cannot ..." goes on in the error's message.
    :param warnings_fail: a line with "warning:" is a failure too.
    :raise GuestError: of the class ``error``, with the command's last lines, or the warning.
    """
    try:
        done = subprocess.run(  # noqa: PLW1510  the exit code is looked at below
            command, cwd=cwd, input=stdin, capture_output=True, env=_environment()
        )
    except FileNotFoundError as absent:
        raise error(f"cannot {what}: {absent.filename} is missing (make setup)") from absent
    if done.returncode != 0:
        printed = (done.stdout + done.stderr if stdin is None else done.stderr).decode(
            errors="replace"
        )
        last = "\n".join(printed.strip().splitlines()[-_LAST_LINES:])
        raise error(f"cannot {what}: {' '.join(map(str, command))}: {last}")
    warning = _WARNING.search(done.stdout + done.stderr) if warnings_fail else None
    if warning is not None:
        raise error(f"cannot {what}: {warning[0].decode(errors='replace')}")
    return done.stdout


def follow(
    command: Sequence[str | Path],
    *,
    error: type[GuestError],
    what: str,
    cwd: Path,
    log: Path,
    each: Callable[[str], None],
) -> None:
    """Run a long ``command``: ``each`` gets every line that it prints, ``log`` all, at its end.

    :param what: as for ``run``.
    :raise GuestError: of the class ``error``: it fails, or a line in ``log`` has "warning:" in it.
    """
    with (
        log.open("a", encoding="utf-8") as written,
        subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environment(),
        ) as process,
    ):
        for line in process.stdout or ():
            written.write(line)
            each(line)
    if process.returncode != 0:
        last = "\n".join(log.read_text(encoding="utf-8").splitlines()[-_LAST_LINES:])
        raise error(f"cannot {what}: {' '.join(map(str, command))}: {last}")
    warning = _WARNING.search(log.read_bytes())
    if warning is not None:
        raise error(f"cannot {what}: {warning[0].decode(errors='replace')}")


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    return inherited | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
