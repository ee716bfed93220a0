"""The command `optpolined`.

Exit codes: 0 done, or nothing to gain; 1 the guest or QEMU failed while attached, or its text could
not be restored; 2 bad input: a wrong option, configuration, guest or socket.
"""

import argparse
import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from optpolined.calibrate import command as calibrate
from optpolined.config import DEFAULT_DIRECTORIES, ConfigError, GuestConfig, load
from optpolined.control.override_file import OverrideFile
from optpolined.daemon.dry_run import dry_run
from optpolined.daemon.serve import Options, serve
from optpolined.errors import OptpolinedError
from optpolined.lab.command import main as replay
from optpolined.lab.errors import LabError
from optpolined.learning.trace.errors import TraceError
from optpolined.patching.protocol.choice import ProtocolChoice
from optpolined.session.link import AttachRefusedError, NothingToGainError
from optpolined.session.recover_only import recover_only
from optpolined.telemetry.live import LiveView
from optpolined.telemetry.logs import configure_logging, goes_to_journal
from optpolined.telemetry.notify import Notifier

__all__ = ("main", "make_parser")

_log = logging.getLogger(__name__)

_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "calibrate": calibrate.main,
    "replay": replay,
}
"""The commands that the first argument may name."""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2

_EPILOG = """\
example:
  optpolined --guest vm1 --dry-run           show what it would attach to, and how many sites
  optpolined --guest vm1 --duration 60 --audit --report vm1.json
  optpolined --guest vm1 --recover-only      put back what a daemon that died has left
  optpolined --guest vm1 --record vm1.trace  record what learning sees
  optpolined replay vm1.trace                compare strategies on it (see replay --help)
  optpolined calibrate                       measure what calls cost on this host, for NAME.toml

SIGHUP: the daemon reads [policy] and [learning] of NAME.toml again

exit codes: 0 done or nothing to gain, 1 failed while attached, 2 bad input
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command itself; the commands in ``_COMMANDS`` have their own."""
    parser = argparse.ArgumentParser(
        prog="optpolined",
        description="Make the hot indirect calls of a running QEMU guest direct.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--guest", required=True, metavar="NAME", help="the guest of NAME.toml")
    parser.add_argument(
        "--config-dir",
        type=Path,
        metavar="DIR",
        help=f"where NAME.toml is (default: {', then '.join(map(str, DEFAULT_DIRECTORIES))})",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="look, print, change nothing")
    instead.add_argument(
        "--recover-only",
        action="store_true",
        help="put back what a daemon that died has left, and end",
    )
    parser.add_argument(
        "--duration", type=_positive_seconds, metavar="SECONDS", help="put back and end after this"
    )
    parser.add_argument(
        "--protocol",
        type=ProtocolChoice,
        choices=list(ProtocolChoice),
        metavar="{auto,breakpoint,stopped}",
        help="how sites are changed (default: as configured)",
    )
    parser.add_argument(
        "--audit", action="store_true", help="measure the coverage of all sites before the end"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a JSON report")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="record what learning sees, for `replay`"
    )
    parser.add_argument("--live", action="store_true", help="show a live view on the terminal")
    parser.add_argument(
        "--force", action="store_true", help="attach even to a guest that has no retpolines"
    )
    parser.add_argument("--verbose", action="store_true", help="log what each epoch does")
    return parser


def _positive_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds greater than 0")
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in _COMMANDS:
        return _COMMANDS[arguments[0]](arguments[1:])
    options = make_parser().parse_args(arguments)
    errors = Console(stderr=True)
    configure_logging(options.guest, errors, verbose=options.verbose)
    notifier = Notifier.from_environment(os.environ)
    try:
        return _run(options, _load(options), errors, notifier)
    except NothingToGainError as reason:
        _say_last(str(reason), logging.INFO, errors, notifier)
        notifier.ready()  # to systemd, an end before READY=1 is a failure
        return EXIT_OK
    except OptpolinedError as error:
        _say_last(str(error), logging.ERROR, errors, notifier)
        bad_input = isinstance(error, (ConfigError, AttachRefusedError, LabError, TraceError))
        return EXIT_BAD_INPUT if bad_input else EXIT_FAILED


def _say_last(text: str, level: int, errors: Console, notifier: Notifier) -> None:
    """Say why the daemon ends: in a line on the terminal, or as an event in the journal."""
    notifier.send_status(text)
    if goes_to_journal():
        _log.log(level, "%s", text)
    else:
        errors.print(f"optpolined: {text}", highlight=False, soft_wrap=True, markup=False)


def _run(
    options: argparse.Namespace, config: GuestConfig, errors: Console, notifier: Notifier
) -> int:
    if options.dry_run:
        for line in dry_run(options.guest, config, force=options.force):
            sys.stdout.write(line + "\n")
        return EXIT_OK
    if options.recover_only:
        recovered = recover_only(config)
        OverrideFile(
            config.runtime_directory, options.guest
        ).remove()  # there is to be no next daemon
        sys.stdout.write(f"{recovered}\n")
        return EXIT_OK if recovered.is_complete else EXIT_FAILED
    stop, hung_up = threading.Event(), threading.Event()
    for number, event in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGHUP, hung_up)):
        signal.signal(number, partial(_set, event))
    how = Options(
        duration_seconds=options.duration,
        audit=options.audit,
        force=options.force,
        record=options.record,
        reread=partial(_reread, options, hung_up),
        notifier=notifier,
    )
    if notifier.is_watched:
        faulthandler.enable()  # the watchdog's SIGABRT then shows where the loop hung
    if options.live:
        with LiveView(errors) as view:
            report = serve(options.guest, config, how, stop, view.show)
    else:
        report = serve(options.guest, config, how, stop, lambda _: None)
    if options.report:
        report.write(options.report)
    for line in report.lines():
        sys.stdout.write(line + "\n")
    clean = report.text_identical_after_detach or report.migrated_away
    return EXIT_OK if clean else EXIT_FAILED


def _set(event: threading.Event, *_: object) -> None:
    event.set()


def _reread(options: argparse.Namespace, hung_up: threading.Event) -> GuestConfig | None:
    """Read the file again after a SIGHUP; a wrong file changes nothing."""
    if not hung_up.is_set():
        return None
    hung_up.clear()
    try:
        return _load(options)
    except ConfigError as error:
        _log.error(
            "the configuration stays as it is: %s", error, extra={"reason": "bad_configuration"}
        )
        return None


def _load(options: argparse.Namespace) -> GuestConfig:
    """Return the configuration of the file, changed by the options.

    :raise ConfigError: the file is absent or wrong.
    """
    directories = (options.config_dir,) if options.config_dir else DEFAULT_DIRECTORIES
    config = load(options.guest, directories)
    if options.protocol is None:
        return config
    poke = config.poke.model_copy(update={"protocol": options.protocol})
    return config.model_copy(update={"poke": poke})
