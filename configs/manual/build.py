"""Writes build/man and build/completions; `python -m configs.manual.build`.

build/man/NAME.SECTION            to share/man/manSECTION
build/completions/COMMAND.bash    to share/bash-completion/completions/COMMAND
build/completions/_COMMAND        to share/zsh/site-functions
build/completions/COMMAND.fish    to share/fish/vendor_completions.d
build/completions/COMMAND.tcsh    to be sourced
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

from configs.manual.completions import completions
from configs.manual.keys import keys_page
from configs.manual.pages import command_page
from optpolined import cli, ctl
from optpolined.calibrate import command as calibrate
from optpolined.lab import command as replay

__all__ = ("build",)

_BUILD = Path("build")
_EXAMPLE = Path("configs/guests/vm1.toml")


def build(directory: Path) -> list[Path]:
    """Write all pages and completions below ``directory``; return the files."""
    daemon, control = cli.make_parser(), ctl.make_parser()
    instead = {"calibrate": calibrate.make_parser(), "replay": replay.make_parser()}
    pages = {
        f"{parser.prog.replace(' ', '-')}.1": command_page(parser)
        for parser in (daemon, control, *instead.values())
    }
    pages["optpolined.toml.5"] = keys_page(_EXAMPLE.read_text(encoding="utf-8"))
    files = {directory / "man" / name: text for name, text in pages.items()}
    for parser in (_joined(daemon, instead), control):
        for name, text in completions(parser).items():
            files[directory / "completions" / name] = text
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(files)


def _joined(daemon: ArgumentParser, instead: dict[str, ArgumentParser]) -> ArgumentParser:
    """Return one parser for the daemon and for the commands that its first argument may name."""
    joined = ArgumentParser(prog=daemon.prog, parents=[daemon], add_help=False)
    commands = joined.add_subparsers()
    for name, parser in instead.items():
        commands.add_parser(name, parents=[parser], add_help=False, help=parser.description)
    return joined


if __name__ == "__main__":
    for file in build(_BUILD):
        sys.stdout.write(f"docs: {file}\n")
