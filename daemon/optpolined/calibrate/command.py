"""The command `optpolined calibrate`.

Exit codes: 0 done; 2 the file exists already or cannot be written, or the measured costs make no
sense.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from rich.console import Console

from optpolined.calibrate.fit import RANDOM, STEADY, Cycles, fit
from optpolined.calibrate.measure import Case, measure, pin
from optpolined.calibrate.stub import LEARN_STUB
from optpolined.learning.cost import Costs
from optpolined.learning.errors import SettingError

__all__ = ("main", "make_parser", "table")

_EPILOG = """\
example:
  optpolined calibrate                      paste what it prints into the guest's NAME.toml
  optpolined calibrate --write costs.toml

exit codes: 0 done; 2 the file cannot be written, or exists already, or the CPU was too busy
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="optpolined calibrate",
        description="Measure what a call costs in each form on this host's CPU, in a minute or so.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write a new file instead of printing"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = make_parser().parse_args(arguments)
    if options.write and options.write.exists():
        sys.stderr.write(f"optpolined: {options.write} exists already; name a new file\n")
        return 2
    cpu = pin()
    try:
        with _progress(Console(stderr=True)) as say:
            costs = fit(
                _cycles(STEADY, say),
                {targets: _cycles(case, say) for targets, case in RANDOM.items()},
                Costs(),
            )
        text = table(costs, f"{_model()}, CPU {cpu}")
        if options.write:
            options.write.write_text(text, encoding="utf-8")
        else:
            sys.stdout.write(text)
    except SettingError as error:
        sys.stderr.write(f"optpolined: measured {error}; try again when the host is less busy\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"optpolined: {error}\n")
        return 2
    return 0


def table(costs: Costs, where: str) -> str:
    """Return the section of a guest's file; each cost has its ratio to the default beside it."""
    default = Costs()
    lines = [f"# Measured on {where}; in brackets the ratio to the default.", "[learning.costs]"]
    for field in fields(Costs):
        found, usual = getattr(costs, field.name), getattr(default, field.name)
        lines.append(f"{field.name} = {found}  # ({found / usual:.2f})")
    return "\n".join(lines) + "\n"


def _cycles(case: Case, say: Callable[[str], None]) -> Cycles:
    return {name: ratio.cycles for name, ratio in measure(case, LEARN_STUB, say).items()}


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], None]]:
    """Show in one line what is measured now; without a terminal, print a line for each step."""
    if not console.is_terminal:
        yield lambda line: console.print(line, highlight=False)
        return
    with console.status("") as status:
        yield status.update


def _model() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else "an unnamed CPU"
