"""Make the traces again: ``python -m tests.traces``."""

from pathlib import Path

from optpolined.lab.tracefile import TraceWriter
from tests.traces.scenarios import SCENARIOS, name

HERE = Path(__file__).parent


def main() -> None:
    for title, scenario in SCENARIOS.items():
        trace = scenario()
        with (HERE / f"{title}.trace").open("wb") as file, TraceWriter(file, trace.header) as out:
            for epoch in trace.epochs:
                out.write(epoch, name)


if __name__ == "__main__":
    main()
