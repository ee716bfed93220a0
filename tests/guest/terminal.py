"""A real terminal for the tests: tmux."""

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.guest.harness import PATIENCE_SECONDS, wait_until

__all__ = ("Terminal",)

_RUN = '"$@"; echo $? >"$0"; exec sleep infinity'
"""Keeps the window and writes the exit code, because tmux does not always notice an end."""


class Terminal:
    """Runs a command in a window of this size while the ``with`` block runs.

    :param socket: Where tmux makes its socket; a short path.
    """

    def __init__(self, socket: Path, command: Sequence[object], *, size: tuple[int, int]) -> None:
        self._tmux = ("tmux", "-S", str(socket), "-f", "/dev/null")
        self._code = socket.with_suffix(".code")
        self._command = ("sh", "-c", _RUN, str(self._code), *map(str, command))
        self._size = size

    def __enter__(self) -> Self:
        columns, lines = self._size
        self._run(*("new-session", "-d", "-x", str(columns), "-y", str(lines)), *self._command)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._run("kill-server")

    def press(self, *keys: str) -> None:
        """Press keys, by tmux's names for them."""
        self._run("send-keys", *keys)

    def screen(self) -> str:
        """Return what the window shows, also after the command has ended."""
        return self._run("capture-pane", "-p")

    def exit_code(self) -> int | None:
        """Return the exit code of the command; ``None`` while it runs."""
        code = self._code.read_text(encoding="utf-8") if self._code.exists() else ""
        return int(code) if code.endswith("\n") else None

    def wait_for(self, wanted: Callable[[str], bool]) -> str:
        """Wait until the screen is as wanted; return what it shows."""
        return wait_until(self.screen, "the screen is as wanted", wanted)

    def wait_end(self) -> int:
        """Wait until the command has ended; return its exit code."""
        code, _ = wait_until(
            lambda: (self.exit_code(), self.screen()),
            "the command ends",
            lambda seen: seen[0] is not None,
        )
        assert code is not None
        return code

    def _run(self, *arguments: str) -> str:
        # A copy of Python's environment: readline has put a terminal size into that of C.
        return subprocess.run(
            [*self._tmux, *arguments],
            env=dict(os.environ),
            check=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        ).stdout
