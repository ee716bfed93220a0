"""Writes text for man pages."""

from collections.abc import Iterable

__all__ = ("MANUAL", "as_it_is", "escaped", "header")

MANUAL = "optpolined"


def escaped(text: str) -> str:
    """Return ``text`` with each character that roff would interpret escaped."""
    shown = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga")
    shown = shown.replace("'", "\\(aq").replace("~", "\\(ti").replace("^", "\\(ha")
    return f"\\&{shown}" if shown.startswith(".") else shown


def header(title: str, section: int, says: str) -> list[str]:
    """Return the first lines of a page."""
    return [
        f'.TH {escaped(title.upper())} "{section}" "" "{MANUAL}" "{MANUAL}"',
        ".SH NAME",
        f"{escaped(title)} \\- {escaped(says)}",
    ]


def as_it_is(lines: Iterable[str]) -> list[str]:
    """Return lines that man does not fill."""
    return [".nf", *map(escaped, lines), ".fi"]
