"""Makes a command's page from its parser.

Each paragraph of the parser's epilog becomes a section; the words before its colon say which.
"""

from argparse import ArgumentParser, HelpFormatter

from argparse_manpage.manpage import Manpage

from configs.manual.parsers import commands
from configs.manual.roff import MANUAL, as_it_is, escaped
from optpolined import __version__

__all__ = ("command_page",)

_FILES = (
    ("/etc/optpolined/NAME.toml", "the settings of the guest NAME: optpolined.toml(5)"),
    ("/run/optpolined/NAME.status", "the socket of its daemon, mode 0600"),
)
_PAGES = (
    "optpolined(1)",
    "optpolinectl(1)",
    "optpolined-calibrate(1)",
    "optpolined-replay(1)",
    "optpolined.toml(5)",
)


class _OneLine(HelpFormatter):
    """Writes each text on one line; the pager of man breaks the lines."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=10_000)


def command_page(parser: ArgumentParser) -> str:
    """Return the page of section 1."""
    epilog, parser.epilog = parser.epilog or "", None
    name = parser.prog.replace(" ", "-")
    says = (parser.description or "").rstrip(".")
    parser.man_short_description = says[:1].lower() + says[1:]  # type: ignore[attr-defined]
    parser.formatter_class = _OneLine
    for command in commands(parser):
        command.formatter_class = _OneLine
        command.description = None  # its help text is the same
    page = Manpage(
        parser,
        {
            "project_name": MANUAL,
            "version": __version__,
            "manual_title": MANUAL,
        },
        format="single-commands-section",
    )
    page.prog = name
    others = [other for other in _PAGES if other != f"{name}(1)"]
    sections = [
        *map(_section, epilog.strip().split("\n\n")),
        [".SH FILES", *(line for path, says in _FILES for line in (".TP", _bold(path), says))],
        [".SH SEE ALSO", escaped(", ".join(others))],
    ]
    return str(page) + "\n".join(line for section in sections for line in section) + "\n"


def _bold(text: str) -> str:
    return f"\\fB{escaped(text)}\\fR"


def _section(paragraph: str) -> list[str]:
    name, _, text = paragraph.partition(":")
    match name:
        case "example":
            lines = [line.strip() for line in text.strip().splitlines()]
            return [".SH EXAMPLES", *as_it_is(lines)]
        case "exit codes":
            return [".SH EXIT STATUS", *_exit_codes(" ".join(text.split()))]
        case _:
            return [".SH NOTES", escaped(" ".join(paragraph.split()))]


def _exit_codes(text: str) -> list[str]:
    """Return an entry for each code in `0 done; 1 it failed; 2 bad input`.

    The list may use commas instead, if no meaning contains one.
    """
    lines = []
    for code in text.split("; " if ";" in text else ", "):
        number, _, meaning = code.partition(" ")
        lines += [".TP", _bold(number), escaped(meaning)]
    return lines
