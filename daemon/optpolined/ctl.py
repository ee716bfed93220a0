"""The command `optpolinectl`: asks a running daemon, or cleans up after a dead one.

Exit codes: 0 done; 1 no daemon, or no QEMU, answers, or it failed; 2 bad input, or refused: nothing
has changed.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from optpolined.config import DEFAULT_DIRECTORIES, ConfigError, GuestConfig, load
from optpolined.errors import OptpolinedError
from optpolined.service.errors import AttachRefusedError
from optpolined.service.rescue import rescue
from optpolined.telemetry.requests import (
    Answer,
    Ban,
    ListSites,
    ListStaticCalls,
    Pin,
    ReleaseStub,
    Request,
    SetStaticCall,
    TakeStub,
    Unban,
    Unpin,
)
from optpolined.telemetry.server import ask, read_status, status_socket

__all__ = ("main",)

_EPILOG = """\
example:
  optpolinectl status --guest vm1
  optpolinectl release-stub --guest vm1     prints the gdb command to use
  optpolinectl take-stub --guest vm1        when gdb has ended
  optpolinectl sites 'vfs_*' --guest vm1    where these sites stand, and why
  optpolinectl pin vfs_read+0x9e ext4_file_read_iter --guest vm1
  optpolinectl ban 'security_*' --guest vm1
  optpolinectl static-call list --guest vm1
  optpolinectl static-call set my_key my_function --guest vm1
  optpolinectl rescue --guest vm1           as systemd's ExecStopPost

exit codes: 0 done; 1 no daemon, or no QEMU, answers, or it failed; 2 bad input, or refused
"""

_Row = Mapping[str, str | int | None]

_SHOWN = ("phase", "kernel", "seconds", "eligible", "states", "pokes", "refused", "int3_hits")


_REQUESTS: tuple[tuple[Request, str], ...] = (
    (ReleaseStub(), "let a debugger have the gdbstub; nothing is changed until it is taken back"),
    (TakeStub(), "take the gdbstub back, once the debugger has ended"),
)


_RULES: tuple[tuple[type[Pin | Unpin | Ban | Unban], str, dict[str, str]], ...] = (
    (Pin, "give a site one target, whatever is learned", {"site": "SITE", "target": "TARGET"}),
    (Unpin, "let a pinned site learn again", {"site": "SITE"}),
    (Ban, "put sites back to what they were; they stay so", {"what": "SITE|PATTERN"}),
    (Unban, "take back a ban, named as it was", {"what": "SITE|PATTERN"}),
)
_PATTERN = "over names of functions, or module:function"
_NAMES = {
    "SITE": "function+0x1f, as the status has it, or an address in hexadecimal",
    "TARGET": "a function, or its address in hexadecimal",
    "SITE|PATTERN": f"function+0x1f or 0x...; or a shell pattern {_PATTERN}",
}


def _parser() -> argparse.ArgumentParser:
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
    for request, says in _REQUESTS:
        commands.add_parser(
            request.request, parents=[guest], description=says, help=says
        ).set_defaults(run=partial(_ask, request))
    _add_policy(commands, guest)
    _add_static_call(commands.add_parser("static-call", help="see and set static calls"), guest)
    says = "resume a guest that a daemon left stopped, whose guardian died too"
    commands.add_parser("rescue", parents=[guest], description=says, help=says).set_defaults(
        run=_rescue
    )
    return parser


def _add_policy(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    guest: argparse.ArgumentParser,
) -> None:
    says = "where each site stands, and why"
    sites = commands.add_parser("sites", parents=[guest], description=says, help=says)
    sites.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help=_PATTERN)
    sites.add_argument("--json", action="store_true", help="as JSON")
    sites.set_defaults(run=_list_sites)
    for make, says, names in _RULES:
        command = commands.add_parser(
            make.model_fields["request"].default, parents=[guest], description=says, help=says
        )
        for name, shown in names.items():
            command.add_argument(name, metavar=shown, help=_NAMES.get(shown))
        command.set_defaults(run=partial(_rule, make, tuple(names)))


def _add_static_call(parser: argparse.ArgumentParser, guest: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="list|set")
    says = "the keys, and where each goes"
    shown = commands.add_parser("list", parents=[guest], description=says, help=says)
    shown.add_argument("--json", action="store_true", help="as JSON")
    shown.set_defaults(run=_list_static_calls)
    says = "point a key at a function of the kernel, or of the key's own module"
    change = commands.add_parser("set", parents=[guest], description=says, help=says)
    change.add_argument("key", metavar="KEY")
    change.add_argument("function", metavar="FUNCTION", help="or NULL: calls do nothing")
    change.set_defaults(run=_set_static_call)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; answer its exit code."""
    options = _parser().parse_args(arguments)
    try:
        directories = (options.config_dir,) if options.config_dir else DEFAULT_DIRECTORIES
        config = load(options.guest, directories)
        exit_code: int = options.run(options, config)
    except OptpolinedError as error:
        sys.stderr.write(f"optpolinectl: {error}\n")
        return 2 if isinstance(error, (ConfigError, AttachRefusedError)) else 1
    return exit_code


def _ask(request: Request, options: argparse.Namespace, config: GuestConfig) -> int:
    return _say(ask(status_socket(config.runtime_directory, options.guest), request))


def _say(answer: Answer) -> int:
    if answer.outcome == "done":
        sys.stdout.write(f"{answer.says}\n")
        return 0
    sys.stderr.write(f"optpolinectl: {answer.says}\n")
    return 2 if answer.outcome == "refused" else 1


def _rule(
    make: Callable[..., Request],
    names: Sequence[str],
    options: argparse.Namespace,
    config: GuestConfig,
) -> int:
    return _ask(make(**{name: getattr(options, name) for name in names}), options, config)


def _list_sites(options: argparse.Namespace, config: GuestConfig) -> int:
    def line(row: _Row) -> str:
        goes = f" -> {row['targets']}" if row["targets"] else ""
        return f"{row['site']}  {row['state']}{goes}: {row['reason']}"

    answer = _ask_rows(ListSites(pattern=options.pattern), line, options, config)
    return 0 if options.json and answer.outcome == "done" else _say(answer)


def _list_static_calls(options: argparse.Namespace, config: GuestConfig) -> int:
    def line(row: _Row) -> str:
        module = f" [{row['module']}]" if row["module"] else ""
        goes = row["target"] or "NULL"
        built = "" if row["target"] == row["built"] else f" (built: {row['built'] or 'NULL'})"
        return f"{row['key']}{module} -> {goes}{built}, {row['sites']} sites"

    answer = _ask_rows(ListStaticCalls(), line, options, config)
    return 0 if answer.outcome == "done" else _say(answer)


def _ask_rows(
    request: Request,
    line: Callable[[_Row], str],
    options: argparse.Namespace,
    config: GuestConfig,
) -> Answer:
    """Show the rows of the answer, a line for each or as JSON."""
    answer = ask(status_socket(config.runtime_directory, options.guest), request)
    if answer.outcome == "done" and options.json:
        sys.stdout.write(json.dumps(answer.rows, indent=2) + "\n")
    elif answer.outcome == "done":
        sys.stdout.writelines(f"{line(row)}\n" for row in answer.rows)
    return answer


def _set_static_call(options: argparse.Namespace, config: GuestConfig) -> int:
    function = None if options.function == "NULL" else options.function
    return _ask(SetStaticCall(key=options.key, function=function), options, config)


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
    ruled = status.get("ruled")
    for site in ruled if isinstance(ruled, list) else ():
        sys.stdout.write(f"{site['state']:<10} {site['site']}: {site['reason']}\n")
    return 0
