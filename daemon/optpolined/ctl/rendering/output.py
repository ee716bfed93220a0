"""Writes an answer: for a terminal, as lines for a pipe, or as JSON."""

import json
import sys

from rich.console import Console, RenderableType

from optpolined.api.requests import Answer
from optpolined.api.status import STATUS, Status
from optpolined.ctl.rendering.explanation import explained
from optpolined.ctl.rendering.figures import figure_lines
from optpolined.ctl.rendering.sites import site_line, site_table, static_call_line
from optpolined.ctl.rendering.text import printable

__all__ = ("Output",)

_EXIT_CODES = {"done": 0, "failed": 1, "refused": 2}
_PIPE_WIDTH = 1000


class Output:
    """Writes the result of a command to stdout, and an error to stderr in one line."""

    def __init__(self, *, as_json: bool, payload: str | None) -> None:
        """:param payload: The field of an answer that the command is about, if there is one."""
        self._as_json = as_json
        self._fields = {"outcome", "says"} | ({payload} if payload else set())
        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        self._console = Console(width=width, markup=False, highlight=False, emoji=False)

    def show(self, result: Answer | Status) -> int:
        """Write the result; return the exit code."""
        if self._as_json:
            _line(json.dumps(self._plain(result), indent=2))
        elif isinstance(result, Status):
            for line in figure_lines(result):
                _line(line)
        elif result.outcome == "done":
            self._show_answer(result)
        sys.stdout.flush()
        if isinstance(result, Status):
            return 0
        if result.outcome != "done":
            sys.stderr.write(f"optpolinectl: {printable(result.says)}\n")
        return _EXIT_CODES[result.outcome]

    def _plain(self, result: Answer | Status) -> object:
        if isinstance(result, Status):
            return STATUS.dump_python(result, mode="json")
        fields = self._fields if result.outcome == "done" else {"outcome", "says"}
        return result.model_dump(mode="json", include=fields)

    def _show_answer(self, answer: Answer) -> None:
        if answer.explanation is not None:
            self._draw(explained(answer.explanation))
            return
        if answer.sites and self._console.is_terminal:
            self._draw(site_table(answer.sites))
        else:
            for row in answer.sites:
                _line(site_line(row))
        for call in answer.static_calls:
            _line(static_call_line(call))
        if answer.says:
            _line(answer.says)

    def _draw(self, what: RenderableType) -> None:
        if self._console.is_terminal:
            self._console.print(what)
            return
        with self._console.capture() as drawn:
            self._console.print(what)
        for line in drawn.get().splitlines():
            _line(line.rstrip())


def _line(text: str) -> None:
    for line in text.split("\n"):
        sys.stdout.write(printable(line) + "\n")
