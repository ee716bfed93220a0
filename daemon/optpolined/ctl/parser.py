"""The options of `optpolinectl`."""

import argparse
from pathlib import Path
from typing import NoReturn, TypeAlias, get_args

from optpolined.api.requests import SITES_MAX, ListSites
from optpolined.config import DEFAULT_DIRECTORIES

__all__ = ("make_parser",)

_EPILOG = """\
example:
  optpolinectl status --guest vm1
  optpolinectl top --guest vm1              the hottest sites, live
  optpolinectl sites 'vfs_*' --guest vm1    the state of these sites, and why
  optpolinectl sites --order misses --top 10 --guest vm1
  optpolinectl explain vfs_read+0x9e --guest vm1
  optpolinectl pin vfs_read+0x9e ext4_file_read_iter --guest vm1
  optpolinectl ban 'security_*' --guest vm1
  optpolinectl revert --all --guest vm1     put everything back, and freeze
  optpolinectl release-stub --guest vm1     prints the gdb command to use
  optpolinectl take-stub --guest vm1        when gdb has ended
  optpolinectl static-call set my_key my_function --guest vm1
  optpolinectl rescue --guest vm1           as systemd's ExecStopPost

exit codes: 0 done; 1 no answer from the daemon or QEMU, or a failure; 2 bad input, or refused
"""

_PATTERN = "a shell pattern over names of functions, or module:function"
_SITE = "function+0x1f, as `sites` prints it, or an address in hexadecimal"
_SITES = f"function+0x1f or 0x...; or {_PATTERN}"

_Argument = tuple[str, str, str]
"""The argument's name in the namespace, its name in the help, and its meaning."""

_AT = ("site", "SITE", _SITE)
_REQUESTS: dict[str, tuple[str, tuple[_Argument, ...]]] = {
    "explain": (
        "explain one site: its original bytes, its bytes now, what was learned",
        (_AT,),
    ),
    "pin": (
        "give a site one target, whatever is learned",
        (_AT, ("target", "TARGET", "a function, or its address in hexadecimal")),
    ),
    "unpin": ("let a pinned site learn again", (_AT,)),
    "ban": ("put sites back as they were, and keep them so", (("what", "SITE|PATTERN", _SITES),)),
    "unban": ("take back a ban of the same name", (("what", "SITE|PATTERN", _SITES),)),
    "relearn": (
        "drop what was learned of a site, or that it was reverted, and learn from nothing",
        (_AT,),
    ),
    "freeze": ("change nothing until `thaw`; what is patched stays, and is counted", ()),
    "thaw": ("go on after `freeze`", ()),
    "release-stub": (
        "lend the gdbstub to a debugger; the daemon changes nothing until `take-stub`",
        (),
    ),
    "take-stub": ("take the gdbstub back when the debugger has ended", ()),
    "rescue": ("resume a guest that is stopped because its daemon and guardian were killed", ()),
}
"""The commands that have only positional arguments."""

_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"  # noqa: SLF001 - it has no other name


class _Parser(argparse.ArgumentParser):
    """Reports in one line what is wrong, and which command shows the help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands.

    In its result, ``command`` is the name of the command.  ``payload`` is the field of the
    daemon's answer that the command prints, or ``None``.
    """
    parser = _Parser(
        prog="optpolinectl",
        description="Ask a running optpolined, or clean up after a dead one.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", dest="command"
    )
    common = _common()
    _add(commands, common, "status", "show what the daemon of a guest does")
    _add_top(commands, common)
    _add_sites(commands, common)
    for name, (says, arguments) in _REQUESTS.items():
        command = _add(commands, common, name, says)
        for destination, shown, meaning in arguments:
            command.add_argument(destination, metavar=shown, help=meaning)
    _add_revert(commands, common)
    _add_static_call(commands, common)
    parser.set_defaults(payload=None)
    commands.choices["explain"].set_defaults(payload="explanation")
    return parser


def _common() -> _Parser:
    common = _Parser(add_help=False)
    common.add_argument("--guest", required=True, metavar="NAME", help="the guest of NAME.toml")
    common.add_argument(
        "--config-dir",
        type=Path,
        metavar="DIR",
        help=f"where NAME.toml is (default: {', then '.join(map(str, DEFAULT_DIRECTORIES))})",
    )
    common.add_argument("--json", action="store_true", help="print the answer as JSON")
    return common


def _add(commands: _Commands, common: _Parser, name: str, says: str) -> _Parser:
    return commands.add_parser(name, parents=[common], description=says, help=says)


def _add_top(commands: _Commands, common: _Parser) -> None:
    says = "show the hottest sites, misses and stops live; with --json, print a line each time"
    command = _add(commands, common, "top", says)
    command.add_argument(
        "--interval",
        type=_seconds,
        default=2.0,
        metavar="SECONDS",
        help="the time between two updates (default: 2)",
    )


def _add_sites(commands: _Commands, common: _Parser) -> None:
    command = _add(commands, common, "sites", "show the state of sites, and why")
    command.set_defaults(payload="sites")
    which = command.add_mutually_exclusive_group()
    which.add_argument("pattern", nargs="?", metavar="PATTERN", help=_PATTERN)
    which.add_argument("--symbol", metavar="PATTERN", help="the same, as an option")
    command.add_argument(
        "--state",
        action="append",
        default=[],
        metavar="STATE",
        help="show only sites in this state, as `status` names it; may be given more than once",
    )
    command.add_argument(
        "--top", type=_count, metavar="N", help="show only the first N of the order (default: 1000)"
    )
    command.add_argument(
        "--order",
        choices=get_args(ListSites.model_fields["order"].annotation),
        default="address",
        help="by rising address, or by falling calls or misses per second (default: address)",
    )


def _add_revert(commands: _Commands, common: _Parser) -> None:
    says = "put a site back as it was, until `relearn`; or put all sites back, and freeze"
    command = _add(commands, common, "revert", says)
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("site", nargs="?", metavar="SITE", help=_SITE)
    which.add_argument("--all", action="store_true", help="put all sites back; `thaw` goes on")


def _add_static_call(commands: _Commands, common: _Parser) -> None:
    says = "show and set static calls"
    parser = commands.add_parser("static-call", description=says, help=says)
    inner = parser.add_subparsers(
        title="commands", required=True, metavar="list|set", dest="static_call"
    )
    keys = _add(inner, common, "list", "show the keys, and the target of each")
    keys.set_defaults(payload="static_calls")
    change = _add(inner, common, "set", "point a key at a function of the kernel, or of its module")
    change.add_argument("key", metavar="KEY", help="as `list` prints it")
    change.add_argument("function", metavar="FUNCTION", help="its name, or NULL: calls do nothing")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= SITES_MAX:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {SITES_MAX}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0.1 to 3600")
    return seconds
