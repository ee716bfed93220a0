"""The command `optpolinectl`: asks a running daemon.

Exit codes: 0 done, 1 no daemon answers, 2 bad input.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from optpolined.config import DEFAULT_DIRECTORIES, ConfigError, load
from optpolined.telemetry.server import read_status, status_socket

__all__ = ("main",)

_EPILOG = """\
example:
  optpolinectl status --guest vm1

exit codes: 0 done, 1 no daemon answers, 2 bad input
"""

_SHOWN = ("phase", "kernel", "seconds", "eligible", "states", "pokes", "refused", "int3_hits")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; answer its exit code."""
    parser = argparse.ArgumentParser(
        prog="optpolinectl",
        description="Ask a running optpolined.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="what the daemon of a guest is doing")
    status.add_argument("--guest", required=True, metavar="NAME", help="read NAME.toml")
    status.add_argument("--config-dir", type=Path, metavar="DIR", help="where NAME.toml is")
    status.add_argument("--json", action="store_true", help="everything, as JSON")
    options = parser.parse_args(arguments)
    try:
        return _status(options)
    except ConfigError as error:
        sys.stderr.write(f"optpolinectl: {error}\n")
        return 2


def _status(options: argparse.Namespace) -> int:
    directories = (options.config_dir,) if options.config_dir else DEFAULT_DIRECTORIES
    config = load(options.guest, directories)
    path = status_socket(config.runtime_directory, options.guest)
    try:
        status = read_status(path)
    except (OSError, ValueError) as error:
        sys.stderr.write(
            f"optpolinectl: {path}: {error}; is `optpolined --guest {options.guest}` running?\n"
        )
        return 1
    if options.json:
        sys.stdout.write(json.dumps(status, indent=2) + "\n")
        return 0
    for name in _SHOWN:
        value = status.get(name)
        shown = (
            ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
            if isinstance(value, dict)
            else value
        )
        sys.stdout.write(f"{name:<10} {shown}\n")
    return 0
