"""Makes the completions of a command for each shell, from its parser."""

from argparse import ArgumentParser
from enum import Enum

import shtab

from configs.manual.parsers import actions

__all__ = ("completions",)

_FILES = {"bash": "{}.bash", "zsh": "_{}", "fish": "{}.fish", "tcsh": "{}.tcsh"}
_GUESTS = shtab.cmd('ls /etc/optpolined 2>/dev/null | sed -n "s/[.]toml//p"')
_GUESTS["tcsh"] = ""  # a rule of tcsh cannot contain a path in a command
_COMPLETED = {"--guest": _GUESTS, "--config-dir": shtab.DIRECTORY}


def completions(parser: ArgumentParser) -> dict[str, str]:
    """Return the text of each file, by the file's name."""
    for action in actions(parser):
        for option in action.option_strings:
            if option in _COMPLETED:
                action.complete = _COMPLETED[option]  # type: ignore[attr-defined]
        if isinstance(action.choices, list):
            action.choices = [it.value if isinstance(it, Enum) else it for it in action.choices]
    return {
        name.format(parser.prog): shtab.complete(parser, shell) for shell, name in _FILES.items()
    }
