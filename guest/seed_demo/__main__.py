"""Run each system of the seed mail on a guest: ``python -m guest.seed_demo``.

It writes build/seed.json; the exit code says whether every row works.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from guest.image.boot import Guest
from guest.image.errors import GuestError
from guest.seed_demo import forms, systems
from guest.seed_demo.bench import attached, settings
from guest.seed_demo.rows import Row
from optpolined.errors import OptpolinedError

_SUMMARY = Path("build/seed.json")
_WARM_UP_SECONDS = 3
_SCENARIOS = {
    "optbench": "call_1 call_2_random call_4_random tail_4_random",
    "optseed": "call_1 call_2_skewed tail_1 tail_2_skewed keyed_random keyed_tail keyed_lies "
    "keyed_pointer static_inline static_inline_tail static_inline_event static_outline "
    "static_outline_tail static_outline_event",
}
_WORKLOAD = "optload --state /run/optload & optreceivers 4 & " + "".join(
    f"for name in {names}; do echo run $name >/proc/{module}; done; "
    for module, names in _SCENARIOS.items()
)


def rows(guest: Guest) -> Iterator[Row]:
    """Yield each row as soon as it is known."""
    with attached(guest, settings(guest)) as bench:
        yield forms.inline(bench)
        yield forms.out_of_line(bench)
        yield forms.arena_reuse(bench)
        yield from forms.static_calls(bench)
        yield forms.keyed_tree(bench)
        yield forms.tree_by_target(bench)
    yield systems.continuous_on_deliver_skb(guest)
    yield systems.hysteresis(guest)
    yield systems.opt_in_and_out(guest)


def main() -> int:
    """Run the demo of the seed; return its exit code."""
    argparse.ArgumentParser(description="Run each system of the seed mail on a guest.").parse_args()
    _say("booting a Debian kernel with 2 vCPUs; about two minutes")
    done = []
    try:
        with Guest(append=f'seed workload="{_WORKLOAD}wait"') as guest:
            guest.wait_ready()
            time.sleep(_WARM_UP_SECONDS)
            for row in rows(guest):
                done.append(row)
                _say(f"{'works' if row.works else 'DOES NOT WORK'}: {row.name}")
                if not row.works:
                    _say(json.dumps(row.evidence))
    except (GuestError, OptpolinedError) as error:
        sys.stderr.write(f"demo-seed: {error}\n")
        return 1
    _SUMMARY.parent.mkdir(exist_ok=True)
    summary = {"rows": [asdict(row) for row in done]}
    _SUMMARY.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    working = sum(row.works for row in done)
    _say(f"{working} of {len(done)} systems work; {_SUMMARY} has the evidence")
    return int(working != len(done))


def _say(text: str) -> None:
    sys.stdout.write(f"demo-seed: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
