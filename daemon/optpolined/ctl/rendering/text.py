"""Text that is safe to print on a terminal."""

from rich.text import Text

__all__ = ("printable", "rate", "styled")


def printable(text: str) -> str:
    """Return ``text`` with a question mark for each character that is not printable."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def styled(text: str, style: str = "") -> Text:
    """Return ``text`` for a terminal; markup in it stays as it is."""
    return Text(printable(text), style)


def rate(per_second: float) -> str:
    """Format a number of calls per second."""
    return f"{per_second:,.0f}"
