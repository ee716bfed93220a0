"""Lists what a parser contains; argparse has no public way to do that."""

from argparse import Action, ArgumentParser, _SubParsersAction
from collections.abc import Iterator

__all__ = ("actions", "commands")


def commands(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    """Yield the parsers of all commands of ``parser``, at every level."""
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, _SubParsersAction):
            for command in action.choices.values():
                yield command
                yield from commands(command)


def actions(parser: ArgumentParser) -> Iterator[Action]:
    """Yield the actions of ``parser`` and of all its commands."""
    for owner in (parser, *commands(parser)):
        yield from owner._actions  # noqa: SLF001
