"""A guest that is made up, as the daemon would tell of it: for what shows it to others.

States, rates and figures are in the proportions of a real one under load.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final

from prometheus_client import CollectorRegistry

from optpolined.api.requests import Answer, Explain, ListSites, ListStaticCalls, Question
from optpolined.api.sites import (
    Event,
    Explanation,
    Instruction,
    Listing,
    Part,
    SiteRow,
    StaticCallRow,
    Target,
)
from optpolined.api.status import (
    ArenaUse,
    DaemonPhase,
    Durations,
    HotSite,
    Status,
    StopSummary,
    Versions,
)
from optpolined.telemetry.history import INTERVAL_SECONDS, Sample
from optpolined.telemetry.web import Sources, serve_web

__all__ = ("MARKUP", "NOW", "MadeUpGuest", "served")

NOW: Final = 1_790_000_000.0
MARKUP: Final = "<img src=x onerror=alert(1)>&\"'</td>"
"""A name that a guest gives a function, and that no page may take for its own words."""

_STATES: Final = {
    "promoted": 0.03,
    "learning": 0.002,
    "missing": 0.001,
    "megamorphic": 0.003,
    "quarantine": 0.001,
    "pinned": 0.0005,
    "banned": 0.001,
    "skipped": 0.004,
    "cold": 1.0,
}
_FUNCTIONS: Final = (
    *("vfs_read", "vfs_write", "do_filp_open", "sock_sendmsg", "tcp_v4_rcv", "security_file_open"),
    *("napi_poll", "submit_bio", "handle_irq_event", "ksys_ioctl", "do_iter_read", "seq_read_iter"),
)
_TARGETS: Final = ("ext4_file_read_iter", "pipe_read", "sock_read_iter", "shmem_file_read_iter")
_JOURNAL: Final = 64


class MadeUpGuest:
    """Has ``sites``; ``odd_name`` is the function of its hottest one.

    So many of the ``hottest`` are told one by one.
    """

    def __init__(
        self, sites: int = 7861, *, odd_name: str | None = None, hottest: int = 20
    ) -> None:
        self._hottest = hottest
        chance = random.Random(7)
        self.rows = sorted(
            (_row(chance, number, sites) for number in range(sites)),
            key=lambda row: -row.calls_per_second,
        )
        if odd_name is not None:
            self.rows[0] = replace(self.rows[0], site=f"{odd_name}+0x1f")
        self._chance = chance

    def status(self) -> Status:
        """What its daemon tells."""
        states = Counter(row.state for row in self.rows if row.state != "skipped")
        skipped = len(self.rows) - states.total()
        promoted = [row for row in self.rows if row.state == "promoted"]
        return Status(
            "vm1",
            DaemonPhase.RUNNING,
            versions=Versions("0.1.0", 3, "7.2.22"),
            kernel="6.1.0-56-cloud-amd64",
            accelerator="kvm",
            vcpus=4,
            seconds=8123.4,
            attachments=1,
            epoch=16_246,
            epochs=Durations(16_246, 2103.5, (0, 12, 900, 11_000, 4000, 300, 30, 4, 0, 0, 0)),
            found=len(self.rows),
            eligible=states.total(),
            skipped={"noinstr": 8, "int3_path": 6, "nokprobe": max(0, skipped - 14)},
            states=dict(states),
            targets_histogram=dict(Counter(len(row.targets) for row in promoted)),
            hottest=tuple(
                HotSite(
                    row.site,
                    tuple(target.name for target in row.targets),
                    row.calls_per_second,
                    row.misses_per_second,
                )
                for row in promoted[: self._hottest]
            ),
            counted_calls=9_120_332,
            missed_calls=4_221_006,
            direct_per_second=sum(row.calls_per_second for row in promoted),
            missed_per_second=sum(row.misses_per_second for row in promoted),
            coverage=0.968,
            learning_overhead_share=0.0021,
            cycles_saved_per_second=8.1e7,
            protocol="breakpoint",
            pokes=9233,
            refused={"foreign_breakpoint": 1},
            int3_hits=41_965,
            arena=ArenaUse(2 << 20, 411_648, 12_288),
            stops=StopSummary(
                *(8620, 9.7, (12, 310, 1240, 1890, 1904, 1400, 1010, 640, 190, 21, 2, 1, 0)),
                p50_seconds=0.00071,
                p99_seconds=0.00412,
                max_seconds=0.0134,
            ),
            graces=Durations(812, 61.0, (0, 11, 302, 420, 74, 5, 0, 0, 0, 0, 0, 0, 0)),
            journal=tuple(self._event(number) for number in range(_JOURNAL)),
        )

    def history(self) -> Sequence[Sample]:
        """Its last hour: it learned at first, and a load changed in the middle."""
        chance = random.Random(11)
        moments = []
        for number in range(360):
            dip = 0.35 * max(0.0, 1 - abs(number - 210) / 14)
            coverage = min(0.97, number / 25) - dip + chance.uniform(-0.006, 0.006)
            misses = 4000 + 60_000 * dip + chance.uniform(0, 1500)
            moments.append(
                Sample(
                    at=NOW - (359 - number) * INTERVAL_SECONDS,
                    phase="learning" if number < 12 else "running",
                    coverage=None if number < 3 else max(0.0, coverage),
                    direct_per_second=225_000 * max(0.0, coverage),
                    missed_per_second=misses,
                    promoted=min(227, number * 9),
                    stops=number * 24,
                    stopped_seconds=number * 0.026,
                )
            )
        return moments

    def ask(self, question: Question) -> Answer:
        """What its reconcile loop answers."""
        match question:
            case ListSites():
                return self._list(question)
            case ListStaticCalls():
                rows = (StaticCallRow("optseed_work", "optseed", "work_fast", "work_slow", 3),)
                return Answer(outcome="done", says="1 static call", static_calls=rows)
            case Explain():
                found = [row for row in self.rows if question.site in (row.site, row.address)]
                if not found:
                    says = f"{question.site}: there is no indirect call there"
                    return Answer(outcome="refused", says=says)
                return Answer(
                    outcome="done", says=found[0].reason, explanation=self._explain(found[0])
                )

    def _list(self, question: ListSites) -> Answer:
        rows = [
            row
            for row in self.rows
            if fnmatchcase(row.site.partition("+")[0], question.pattern)
            and (not question.states or row.state in question.states)
        ]
        if question.order == "misses":
            rows.sort(key=lambda row: -row.misses_per_second)
        if question.order == "address":
            rows.sort(key=lambda row: row.address)
        says = f"{len(rows)} sites"
        return Answer(outcome="done", says=says, sites=tuple(rows[: question.top]))

    def _event(self, number: int) -> Event:
        row = self.rows[number * 3 % len(self.rows)]
        names = tuple(target.name for target in row.targets)
        if number % 3:
            form = "chain" if row.targets else "learning stub"
            return Event(
                NOW - number * 7.5, 16_246 - number, row.site, "changed", "", "", form, names
            )
        return Event(
            NOW - number * 7.5, 16_246 - number, row.site, "decided", row.state, row.reason
        )

    def _explain(self, row: SiteRow) -> Explanation:
        call = Instruction(row.address, "e8 1b 0c c1 00", "call __x86_indirect_thunk_rax")
        now = Instruction(row.address, "e8 7b f1 20 3f", "call 0xffffffffc0541040")
        lines = [
            Instruction(f"{0xFFFF_FFFF_C054_1040 + 13 * at:#x}", code, f"{text} {target.name}")
            for at, target in enumerate(row.targets)
            for code, text in (("48 3d 10 20 30 81", "cmp rax,"), ("0f 84 aa 01 c0 c0", "je"))
        ]
        lines.append(Instruction("0xffffffffc0541080", "65 ff 05 00 10 00 00", "inc gs:[misses]"))
        lines.append(
            Instruction("0xffffffffc0541087", "e9 f4 bb 6b c1", "jmp __x86_indirect_thunk_rax")
        )
        return Explanation(
            row,
            "rax",
            "call",
            (
                Part(
                    "call",
                    Listing(row.address, 5, (call,)),
                    Listing(row.address, 5, (now if row.targets else call,)),
                ),
            ),
            Listing("0xffffffffc0541040", 0x4C, tuple(lines)) if row.targets else None,
            tuple(replace(self._event(number), site=row.site) for number in range(7)),
        )


def _row(chance: random.Random, number: int, sites: int) -> SiteRow:
    draw = chance.random()
    state = next(name for name, up_to in _cumulated() if draw <= up_to)
    name = f"{_FUNCTIONS[number % len(_FUNCTIONS)]}_{number:x}+{8 + number % 90:#x}"
    address = f"{0xFFFF_FFFF_8100_0000 + number * 0x4000_0000 // sites:#x}"
    if state in ("cold", "skipped", "banned", "learning", "quarantine", "megamorphic"):
        calls = chance.paretovariate(1.2) * (900 if state == "megamorphic" else 2)
        reasons = {
            "skipped": "noinstr",
            "cold": "under 100 calls/s in most of the window",
            "megamorphic": "4 targets take 61% of its calls",
            "quarantine": "missed 44% of 800 calls/s, too soon after its last change",
        }
        return SiteRow(
            name,
            address,
            state,
            reasons.get(state, state),
            "learning stub" if state == "learning" else "original",
            calls_per_second=0.0 if state in ("cold", "skipped") else calls,
        )
    calls = chance.paretovariate(0.9) * 120
    count = chance.choice((1, 1, 1, 2, 2, 3, 4))
    shares = sorted((chance.random() for _ in range(count)), reverse=True)
    targets = tuple(
        Target(_TARGETS[at], f"{0xFFFF_FFFF_8120_0000 + at * 64:#x}", share / sum(shares))
        for at, share in enumerate(shares)
    )
    reason = f"{count} targets took 97% of {calls:.0f} calls/s for 3 epochs"
    return SiteRow(name, address, state, reason, "chain", targets, calls, calls * 0.02)


def _cumulated() -> Iterator[tuple[str, float]]:
    total = 0.0
    for name, share in _STATES.items():
        total += share
        yield name, total


@contextmanager
def served(guest: MadeUpGuest, registry: CollectorRegistry | None = None) -> Iterator[str]:
    """Serve ``guest`` on a port of its own; gives the URL."""
    sources = Sources(guest.status, guest.history, guest.ask, registry or CollectorRegistry())
    with serve_web("127.0.0.1", 0, sources) as port:
        yield f"http://127.0.0.1:{port}"
