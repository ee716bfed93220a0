"""The command `optpolinectl`: asks a running daemon, or cleans up after a dead one.

    options -> request -> the daemon's answer -> output

    parser.py      the options; pure, because completions and man pages are made from them
    commands.py    does what the options say
    client.py      the daemon at the other end of its socket
    rendering/     an answer as text, as tables, as JSON
    top/           the live view

Exit codes: 0 done; 1 no answer from the daemon or QEMU, or a failure; 2 bad input, or refused, and
nothing has changed.
"""

import os
import sys
from collections.abc import Sequence

from optpolined.api.errors import BadRequestError
from optpolined.api.requests import Answer
from optpolined.config import ConfigError
from optpolined.ctl.commands import run
from optpolined.ctl.parser import make_parser
from optpolined.ctl.rendering.output import Output
from optpolined.errors import OptpolinedError
from optpolined.session.errors import AttachRefusedError

__all__ = ("main", "make_parser")

_EXIT_FAILED = 1
_EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = make_parser().parse_args(arguments)
    output = Output(as_json=options.json, payload=options.payload)
    try:
        try:
            return output.show(run(options))
        except OptpolinedError as error:
            return output.show(_complaint(error))
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has closed the pipe; the interpreter's flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_FAILED


def _complaint(error: OptpolinedError) -> Answer:
    is_refusal = isinstance(error, (ConfigError, AttachRefusedError, BadRequestError))
    return Answer(outcome="refused" if is_refusal else "failed", says=str(error))
