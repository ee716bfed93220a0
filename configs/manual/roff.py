"""Text for man pages."""

from collections.abc import Iterable

__all__ = ("MANUAL", "as_it_is", "escaped", "header")

MANUAL = "optpolined"


def escaped(text: str) -> str:
    """Text that is shown as it stands."""
    shown = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga")
    shown = shown.replace("'", "\\(aq").replace("~", "\\(ti").replace("^", "\\(ha")
    return f"\\&{shown}" if shown.startswith(".") else shown


def header(title: str, section: int, says: str) -> list[str]:
    """What a page begins with."""
    return [
        f'.TH {escaped(title.upper())} "{section}" "" "{MANUAL}" "{MANUAL}"',
        ".SH NAME",
        f"{escaped(title)} \\- {escaped(says)}",
    ]


def as_it_is(lines: Iterable[str]) -> list[str]:
    """Lines that are not filled."""
    return [".nf", *map(escaped, lines), ".fi"]
