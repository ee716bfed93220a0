"""The command `optpolinectl`: asks a running daemon, or cleans up after a dead one.

Exit codes: 0 done, 1 no daemon, or no QEMU, answers; 2 bad input.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from optpolined.config import DEFAULT_DIRECTORIES, ConfigError, GuestConfig, load
from optpolined.errors import OptpolinedError
from optpolined.service.errors import AttachRefusedError
from optpolined.service.rescue import rescue
from optpolined.telemetry.server import read_status, status_socket

__all__ = ("main",)

_EPILOG = """\
example:
  optpolinectl status --guest vm1
  optpolinectl rescue --guest vm1     as systemd's ExecStopPost

exit codes: 0 done, 1 no daemon, or no QEMU, answers; 2 bad input
"""

_SHOWN = ("phase", "kernel", "seconds", "eligible", "states", "pokes", "refused", "int3_hits")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; answer its exit code."""
    parser = argparse.ArgumentParser(
        prog="optpolinectl",
        description="Ask a running optpolined, or clean up after a dead one.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    guest = argparse.ArgumentParser(add_help=False)
    guest.add_argument("--guest", required=True, metavar="NAME", help="read NAME.toml")
    guest.add_argument("--config-dir", type=Path, metavar="DIR", help="where NAME.toml is")
    says = "what the daemon of a guest is doing"
    status = commands.add_parser("status", parents=[guest], description=says, help=says)
    status.add_argument("--json", action="store_true", help="everything, as JSON")
    status.set_defaults(run=_status)
    says = "resume a guest that a daemon left stopped, whose guardian died too"
    commands.add_parser("rescue", parents=[guest], description=says, help=says).set_defaults(
        run=_rescue
    )
    options = parser.parse_args(arguments)
    try:
        directories = (options.config_dir,) if options.config_dir else DEFAULT_DIRECTORIES
        config = load(options.guest, directories)
        exit_code: int = options.run(options, config)
    except OptpolinedError as error:
        sys.stderr.write(f"optpolinectl: {error}\n")
        return 2 if isinstance(error, (ConfigError, AttachRefusedError)) else 1
    return exit_code


def _rescue(_: argparse.Namespace, config: GuestConfig) -> int:
    sys.stdout.write(f"{rescue(config)}\n")
    return 0


def _status(options: argparse.Namespace, config: GuestConfig) -> int:
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
