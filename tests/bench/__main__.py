"""Measures what a call costs in each form, natively and side by side; `make bench-forms`.

    python -m tests.bench

Prints tables; writes build/bench-forms.json and build/bench-forms.png.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

from guest.image import build
from optpolined.calibrate.measure import measure, pin
from tests.bench.cases import cases
from tests.bench.plot import draw
from tests.bench.report import document, text
from tests.bench.stub import learn_stub

_JSON = Path("build/bench-forms.json")
_PLOT = Path("build/bench-forms.png")


def main() -> int:
    """Measure all of it; return the exit code."""
    started = time.monotonic()
    stub = learn_stub(build.load("cloud").modules["optpoline"].read_bytes())
    machine = _machine(pin())
    results = {case.name: measure(case, stub, _say) for case in cases()}
    machine["load"] += f" before, {os.getloadavg()[0]:.1f} after"
    _JSON.write_text(json.dumps(document(machine, results), indent=1) + "\n")
    draw(results, machine["cpu"], _PLOT)
    sys.stdout.write(f"\n{text(machine, results)}\n")
    _say(f"{time.monotonic() - started:.0f} s; also in {_JSON} and {_PLOT}")
    return 0


def _machine(cpu: int) -> dict[str, str]:
    """Return the machine for which the numbers hold."""
    found = dict(re.findall(r"^(.+?)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    return {
        "cpu": f"{found['model name']}, family {found['cpu family']}, model {found['model']}, "
        f"stepping {found['stepping']}; on CPU {cpu} of {os.cpu_count()}",
        "load": f"{os.getloadavg()[0]:.1f}",
        "thunk": "retpoline: call, (pause, lfence, jmp), mov to the stack, ret",
    }


def _say(line: str) -> None:
    sys.stdout.write(f"bench: {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
