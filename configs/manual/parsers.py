"""What a parser has below it; argparse has no other way to it."""

from argparse import Action, ArgumentParser, _SubParsersAction
from collections.abc import Iterator

__all__ = ("actions", "commands")


def commands(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    """The parsers of all commands of ``parser``, and of theirs."""
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, _SubParsersAction):
            for command in action.choices.values():
                yield command
                yield from commands(command)


def actions(parser: ArgumentParser) -> Iterator[Action]:
    """Those of ``parser``, and of all its commands."""
    for owner in (parser, *commands(parser)):
        yield from owner._actions  # noqa: SLF001
