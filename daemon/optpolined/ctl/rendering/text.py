"""What may reach a terminal."""

from rich.text import Text

__all__ = ("printable", "rate", "styled")


def printable(text: str) -> str:
    """``text`` with a question mark for each control character, and each that reorders others."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def styled(text: str, style: str = "") -> Text:
    """``text`` for a terminal, as it is: nothing in it is markup."""
    return Text(printable(text), style)


def rate(per_second: float) -> str:
    """A number of calls a second."""
    return f"{per_second:,.0f}"
