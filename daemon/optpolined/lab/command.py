"""The command `optpolined replay`: compares strategies on recorded or made-up traces.

Exit codes: 0 done; 2 bad input: a wrong option, or a file that is not a trace.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from optpolined.lab.actual_calls import find_actual_calls
from optpolined.lab.clairvoyant import foresee
from optpolined.lab.errors import LabError, ReplayError
from optpolined.lab.replay import ReplayResult, is_recorded, replay, replay_recorded
from optpolined.lab.table import Comparison, as_json, table
from optpolined.learning.config import LearningConfig
from optpolined.learning.shape import Shaper
from optpolined.learning.strategies import StrategyName
from optpolined.learning.trace.errors import TraceError
from optpolined.learning.trace.model import Trace
from optpolined.learning.trace.reader import read_traces

__all__ = ("main", "make_parser", "with_settings")

_WIDTH_MAX = 1000

_EPILOG = """\
example:
  optpolined replay vm1.trace
  optpolined replay vm1.trace --strategy hysteresis --set promote_epochs=5 --set shape.form=chain
  optpolined replay tests/traces/*.trace --plot traces.png

exit codes: 0 done, 2 bad input
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="optpolined replay",
        description="Compare strategies on the same traces, as `optpolined --record` writes them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a trace")
    parser.add_argument(
        "--strategy",
        type=_strategies,
        default=list(StrategyName),
        metavar="NAME,...",
        help=f"the strategies to compare (default: {','.join(StrategyName)})",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a recorded setting of [learning], as in hysteresis.promote_epochs=5; "
        "the section is optional if only one has the key",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw coverage and pokes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _strategies(text: str) -> list[StrategyName]:
    try:
        return [StrategyName(name) for name in dict.fromkeys(text.split(","))]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}: use {', '.join(StrategyName)}") from error


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    options = make_parser().parse_args(arguments)
    errors = Console(stderr=True)
    try:
        _run(options, errors)
    except (LabError, TraceError) as error:
        errors.print(f"optpolined: {error}", highlight=False, soft_wrap=True, markup=False)
        return 2
    return 0


def _run(options: argparse.Namespace, errors: Console) -> None:
    draw = _load_plot() if options.plot else None
    traces = _read(options.files, errors)
    settings = [with_settings(trace.header.learning, options.set) for trace in traces.values()]
    rounds = len(options.strategy)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        total = rounds * sum(len(trace.epochs) for trace in traces.values())
        task = progress.add_task("replaying", total=total)
        comparisons = [
            _compare(name, trace, options.strategy, learning, lambda: progress.advance(task))
            for (name, trace), learning in zip(traces.items(), settings, strict=True)
        ]
    for comparison in comparisons:
        _warn(comparison, errors)
    if options.json:
        sys.stdout.write(json.dumps(as_json(comparisons), indent=2) + "\n")
    else:
        console, drawn = Console(), table(comparisons)
        wide = console.options.update(width=_WIDTH_MAX)
        console.width = max(console.width, console.measure(drawn, options=wide).maximum)
        console.print(drawn, highlight=False)
    if draw is not None:
        try:
            draw(comparisons, options.plot)
        except (OSError, ValueError) as error:
            raise ReplayError(f"{options.plot}: cannot be drawn: {error}") from error


def _load_plot() -> Callable[[Sequence[Comparison], Path], None]:
    try:
        from optpolined.lab.plot import draw  # noqa: PLC0415  (only --plot needs matplotlib)
    except ImportError as error:
        raise ReplayError("--plot needs matplotlib: pip install 'optpolined[plot]'") from error
    return draw


def _read(files: Sequence[Path], errors: Console) -> dict[str, Trace]:
    """Return the traces by name: the file's, with a number if the file has several."""
    traces: dict[str, Trace] = {}
    for path in files:
        found = read_traces(path)
        for number, trace in enumerate(found, 1):
            name = path.name.removesuffix(".trace")
            if len(found) > 1:
                name = f"{name} #{number}"
            if name in traces:
                name = f"{path}" if len(found) == 1 else f"{path} #{number}"
            traces[name] = trace
        if found[-1].is_cut:
            errors.print(
                f"optpolined: {path}: the end of the trace is missing; the rest is replayed",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )
    return traces


def _compare(
    name: str,
    trace: Trace,
    strategies: Sequence[StrategyName],
    learning: LearningConfig,
    tick: Callable[[], None],
) -> Comparison:
    actual = find_actual_calls(trace)
    outcomes: dict[str, ReplayResult] = {}
    for strategy in strategies:
        if is_recorded(trace, strategy, learning):
            outcomes[f"{strategy} (recorded)"] = replay_recorded(trace, actual, tick)
        else:
            outcomes[strategy] = replay(trace, actual, strategy, learning, tick)
    return Comparison(name, foresee(actual, Shaper(learning.shape, learning.costs)), outcomes)


def _warn(comparison: Comparison, errors: Console) -> None:
    for name, outcome in comparison.outcomes.items():
        if outcome.differs_at is not None:
            errors.print(
                f"optpolined: {comparison.trace}: {name} does not decide as the daemon did from "
                f"epoch {outcome.differs_at} on, because another version wrote this trace",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )


def with_settings(learning: LearningConfig, changes: Sequence[str]) -> LearningConfig:
    """Return the settings with each ``key=value`` applied; the key may name its section.

    :raise ReplayError: the key is unknown or in several sections, or the value is not allowed.
    """
    tree = learning.model_dump(mode="json")
    sections = {name: section for name, section in tree.items() if isinstance(section, dict)}
    for change in changes:
        key, equals, value = change.partition("=")
        section, dot, name = key.rpartition(".")
        homes = [home for home, keys in sections.items() if name in keys]
        if dot:
            homes = [home for home in homes if home == section]
        if not equals or not homes:
            raise ReplayError(f"--set {change}: use KEY=VALUE with a key of [learning]")
        if len(homes) > 1:
            choice = " or ".join(f"{home}.{name}" for home in homes)
            raise ReplayError(f"--set {change}: say {choice}")
        sections[homes[0]][name] = _value(value)
    try:
        return LearningConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ReplayError(f"--set: {place}: {first['msg']}") from error


def _value(text: str) -> object:
    try:
        number: object = json.loads(text)
    except ValueError:
        return text
    return number
