"""Make the traces of tests/traces again: ``python -m tests.laboratory``.

A file that holds its scenario already is left as it is: it may be of an older format, which must
still be read.
"""

from pathlib import Path

from optpolined.learning.trace.reader import read_traces
from optpolined.learning.trace.writer import TraceWriter
from tests.laboratory.scenarios import SCENARIOS, name

TRACES = Path(__file__).parents[1] / "traces"


def main() -> None:
    for title, scenario in SCENARIOS.items():
        trace = scenario()
        path = TRACES / f"{title}.trace"
        if path.exists() and read_traces(path) == [trace]:
            continue
        with path.open("wb") as file, TraceWriter(file, trace.header) as out:
            for epoch in trace.epochs:
                out.write(epoch, name)


if __name__ == "__main__":
    main()
