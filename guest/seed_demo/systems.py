"""The rows that run the daemon itself, as an operator does: strategies and policies."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from guest.image.boot import Guest
from guest.image.errors import GuestError
from guest.seed_demo.bench import Tally, attached, settings, tally
from guest.seed_demo.rows import Row, row
from optpolined.api.errors import NoAnswerError
from optpolined.config import PolicyConfig
from optpolined.telemetry.server import status_socket
from optpolined.telemetry.socket_client import read_status

__all__ = ("continuous_on_deliver_skb", "hysteresis", "opt_in_and_out")

_SECONDS = 20.0
_LEARNING_SECONDS = 45.0
"""For all sites of the guest, on a busy host."""
_LOOK_SECONDS = 0.5
_COVERAGE_MIN = 0.90
_PACKET_HANDLERS = frozenset({"ip_rcv", "ipv6_rcv", "packet_rcv"})

_DELIVERING = ("__netif_receive_skb*", "dev_queue_xmit_nit*", "deliver_skb*", "deliver_ptype*")
"""deliver_skb() is inlined: these are the functions of net/core/dev.c that it may stand in."""


@dataclass(frozen=True, slots=True)
class Run:
    """The output of one run: its report, and the targets of the hottest sites over time."""

    report: Mapping[str, object]
    targets: Mapping[str, frozenset[tuple[str, ...]]]
    checked: Tally


def hysteresis(guest: Guest) -> Row:
    """Test the default: two thresholds, agreement over epochs, a margin for challengers."""
    return _until_it_works(partial(_hysteresis, guest), _LEARNING_SECONDS)


def _hysteresis(guest: Guest, seconds: float) -> Row:
    ran = _run_daemon(guest, "hysteresis", strategy="hysteresis", audit=True, seconds=seconds)
    coverage = ran.report["coverage"]
    assert isinstance(coverage, float)
    return row(
        "hysteresis",
        {
            "most indirect calls became direct": coverage >= _COVERAGE_MIN,
            "sites were promoted": bool(ran.report["promoted"]),
            **_clean(ran),
        },
        coverage=coverage,
        promoted=ran.report["promoted"],
        targets_histogram=ran.report["targets_histogram"],
        results_checked=ran.checked.calls,
    )


def continuous_on_deliver_skb(guest: Guest) -> Row:
    """Test Cree's rule on his first site, with IPv4, IPv6 and AF_PACKET receivers."""
    return _until_it_works(partial(_continuous_on_deliver_skb, guest), _SECONDS)


def _continuous_on_deliver_skb(guest: Guest, seconds: float) -> Row:
    # Those of the try before.
    guest.run("[ ! -e /run/receivers-6 ] || kill $(cat /run/receivers-6); rm -f /run/receivers-6")
    policy = ", ".join(f'"{pattern}"' for pattern in _DELIVERING)
    text = f'[policy]\nmode = "opt-in"\ninclude = [{policy}]\n'
    # IPv4's receivers are there from the start; IPv6's come while the daemon is at work.
    receivers = "echo $$ >/run/receivers-6; exec optreceivers 6"
    later = f"setsid sh -c '{receivers}' </dev/null >/dev/null 2>&1 &"
    ran = _run_daemon(
        guest,
        "continuous",
        strategy="continuous",
        audit=False,
        seconds=seconds,
        text=text,
        at_half_time=later,
    )
    delivering = {
        site: sorted(set().union(*chains) & _PACKET_HANDLERS)
        for site, chains in ran.targets.items()
        if set().union(*chains) & _PACKET_HANDLERS
    }
    several = [
        site
        for site in delivering
        if any(len(_PACKET_HANDLERS & set(chain)) > 1 for chain in ran.targets[site])
    ]
    return row(
        "continuous relearning on deliver_skb",
        {
            "a site that calls packet_type->func was promoted": bool(delivering),
            "with several of its receivers at once": bool(several),
            "it was learned again when a receiver came": any(
                len(ran.targets[site]) > 1 for site in delivering
            ),
            **_clean(ran),
        },
        receivers=delivering,
        chains={
            site: sorted(" ".join(chain) for chain in ran.targets[site]) for site in delivering
        },
        pokes=ran.report["pokes"],
        results_checked=ran.checked.calls,
    )


def opt_in_and_out(guest: Guest) -> Row:
    """Test both answers to the mail's question: patterns that are included, or excluded."""
    patterns = ("tcp_*", "optbench:*")

    def functions(policy: PolicyConfig) -> set[str]:
        with attached(guest, settings(guest, policy=policy)) as bench:
            eligible = bench.session.survey.inventory.eligible.values()
            return {
                f"{site.module}:{site.function}" if site.module else site.function
                for site in eligible
            }

    everything = functions(PolicyConfig())
    only = functions(PolicyConfig(mode="opt-in", include=patterns))
    without = functions(PolicyConfig(mode="opt-out", exclude=patterns))
    matching = {name for name in everything if name.startswith(("tcp_", "optbench:"))}
    return row(
        "opt-in and opt-out",
        {
            "opt-in takes what matches, and nothing else": bool(only) and only == matching,
            "opt-out leaves it, and nothing else": without == everything - matching,
        },
        functions=len(everything),
        opted_in=len(only),
        not_opted_out=len(without),
    )


def _until_it_works(make: Callable[[float], Row], seconds: float) -> Row:
    """Make a row in so many seconds; where it does not work, try again in twice and 4 times that.

    A run has a fixed end before its audit, and a busy machine needs a longer run.
    """
    for factor in (1, 2, 4):
        made = make(factor * seconds)
        if made.works:
            break
    return made


def _run_daemon(
    guest: Guest,
    name: str,
    *,
    strategy: str,
    audit: bool,
    seconds: float,
    text: str = "",
    at_half_time: str = "",
) -> Run:
    """Run ``optpolined`` for some seconds, and ask it often for its hottest sites."""
    configs = guest.directory / "configs"
    configs.mkdir(exist_ok=True)
    runtime, report = guest.directory / "run", guest.directory / f"{name}.json"
    (configs / f"{name}.toml").write_text(
        f'runtime_directory = "{runtime}"\n[qemu]\nqmp_socket = "{guest.qmp}"\n'
        f'[learning]\nstrategy = "{strategy}"\n{text}',
        encoding="utf-8",
    )
    before = tally(guest, "optbench", "total")
    command = (
        *(Path(sys.executable).with_name("optpolined"), "--guest", name, "--config-dir", configs),
        *("--duration", str(seconds), "--report", report),
        *(("--audit",) if audit else ()),
    )
    seen: dict[str, set[tuple[str, ...]]] = {}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as daemon:
        while daemon.poll() is None:
            passed = _note(status_socket(runtime, name), seen)
            if at_half_time and passed > seconds / 2:
                guest.run(at_half_time)
                at_half_time = ""
            time.sleep(_LOOK_SECONDS)
        assert daemon.stderr is not None
        said = daemon.stderr.read().decode(errors="replace")
    if not report.exists():
        raise GuestError(f"optpolined ended with {daemon.returncode}: {said.strip()[-500:]}")
    return Run(
        report=json.loads(report.read_text(encoding="utf-8")),
        targets={site: frozenset(chains) for site, chains in seen.items()},
        checked=tally(guest, "optbench", "total").since(before),
    )


def _note(socket: Path, seen: dict[str, set[tuple[str, ...]]]) -> float:
    """Add the targets that the hottest sites have now; return for how many seconds it works."""
    try:
        status = read_status(socket)
    except NoAnswerError:  # it attaches, or has ended
        return 0.0
    for site in status.hottest:
        seen.setdefault(site.site, set()).add(site.targets)
    return status.seconds


def _clean(ran: Run) -> dict[str, bool]:
    return {
        "the text is identical after detach": ran.report["text_identical_after_detach"] is True,
        "the guest's results are right": ran.checked.errors == 0 and ran.checked.calls > 0,
    }
