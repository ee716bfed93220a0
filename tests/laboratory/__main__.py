"""Make the traces of tests/traces again: ``python -m tests.laboratory``."""

from pathlib import Path

from optpolined.learning.trace.writer import TraceWriter
from tests.laboratory.scenarios import SCENARIOS, name

TRACES = Path(__file__).parents[1] / "traces"


def main() -> None:
    for title, scenario in SCENARIOS.items():
        trace = scenario()
        with (TRACES / f"{title}.trace").open("wb") as file, TraceWriter(file, trace.header) as out:
            for epoch in trace.epochs:
                out.write(epoch, name)


if __name__ == "__main__":
    main()
