"""A daemon's real socket, with a loop behind it that gives answers that were made up."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from optpolined.api.request_queue import RequestQueue
from optpolined.api.requests import Answer, Explain, ListSites, Request
from optpolined.api.sites import (
    Event,
    Explanation,
    Instruction,
    Listing,
    Part,
    SiteRow,
    Target,
)
from optpolined.api.status import DaemonPhase, OverriddenSite, Status, StopSummary
from optpolined.telemetry.server import serve_status, status_socket

HOT = SiteRow(
    site="vfs_read+0x9e",
    address="0xffffffff8132a4be",
    state="promoted",
    reason="2 targets have 97% for 3 epochs",
    form="chain",
    targets=(
        Target("ext4_file_read_iter", "0xffffffff813f1240", 0.812),
        Target("pipe_read", "0xffffffff81333ab0", 0.158),
    ),
    calls_per_second=224_527.4,
    misses_per_second=1203.2,
)
COLD = SiteRow(
    site="kvm_arch_init+0x10 [kvm]",
    address="0xffffffffc0100010",
    state="cold",
    reason="not looked at yet",
    form="original",
)
MISSED = SiteRow(
    site="tcp_ack+0x1f0",
    address="0xffffffff81900000",
    state="missing",
    reason="40% missed",
    form="chain",
    targets=(Target("bictcp_acked", "0xffffffff81911000", 0.6),),
    calls_per_second=90.0,
    misses_per_second=5000.0,
)


def listing(address: int, *lines: tuple[str, str]) -> Listing:
    """Code from ``address`` on, by bytes and text."""
    shown, at = [], address
    for code, text in lines:
        shown.append(Instruction(f"{at:#x}", code, text))
        at += len(bytes.fromhex(code))
    return Listing(f"{address:#x}", at - address, tuple(shown))


EXPLANATION = Explanation(
    row=HOT,
    register="rax",
    kind="call",
    parts=(
        Part(
            "call",
            listing(0xFFFFFFFF8132A4BE, ("e81d3c8d00", "call __x86_indirect_thunk_rax")),
            listing(0xFFFFFFFF8132A4BE, ("e87d6b213f", "call 0xffffffffc0541040 (the block)")),
        ),
    ),
    block=listing(
        0xFFFFFFFFC0541040,
        ("483d40123f81", "cmp rax, ext4_file_read_iter"),
        ("0f84f4010000", "je ext4_file_read_iter"),
        ("483db03a3381", "cmp rax, pipe_read"),
        ("0f84f4020000", "je pipe_read"),
        ("654c8b1c2528f00100", "mov r11, qword ptr gs:[0x1f028]"),
        ("e9f4020000", "jmp the learning stub of rax"),
    ),
    history=(
        Event(
            at=1_700_000_012.5,
            epoch=24,
            site=HOT.site,
            kind="changed",
            form="chain",
            targets=("ext4_file_read_iter", "pipe_read"),
        ),
        Event(
            at=1_700_000_012.0,
            epoch=24,
            site=HOT.site,
            kind="decided",
            state="promoted",
            reason="2 targets have 97% for 3 epochs",
            form="chain",
            targets=("ext4_file_read_iter", "pipe_read"),
        ),
        Event(
            at=1_700_000_002.0,
            epoch=4,
            site=HOT.site,
            kind="refused",
            reason="foreign_breakpoint",
        ),
    ),
)

STATUS_NOW = Status(
    "vm1",
    phase=DaemonPhase.RUNNING,
    kernel="6.1.0-56-cloud-amd64",
    accelerator="kvm",
    vcpus=4,
    seconds=312.0,
    epoch=624,
    found=7860,
    eligible=7829,
    states={"cold": 7000, "promoted": 61},
    targets_histogram={1: 60, 2: 1},
    coverage=0.972,
    direct_per_second=224_527.0,
    missed_per_second=1203.0,
    stops=StopSummary(1905, 2.5, (), 0.001, 0.00826, 0.012),
    ruled=(OverriddenSite("alpha+0x10", "pinned", "pinned to beta"),),
)


def answer(request: Request) -> Answer:
    """As a daemon would with three sites."""
    match request:
        case Explain(site=HOT.site | HOT.address):
            return Answer(outcome="done", says="", explanation=EXPLANATION)
        case Explain(site=site):
            return Answer(outcome="refused", says=f"the guest has no function {site}")
        case ListSites():
            return _listed(request)
        case _:
            return Answer(outcome="done", says="so it is")


def _listed(request: ListSites) -> Answer:
    rows = [row for row in (HOT, COLD, MISSED) if request.pattern.strip("*") in row.site]
    if request.order == "calls":
        rows.sort(key=lambda row: -row.calls_per_second)
    if request.order == "misses":
        rows.sort(key=lambda row: -row.misses_per_second)
    return Answer(outcome="done", says=f"{len(rows)} sites", sites=tuple(rows[: request.top]))


@contextmanager
def served(
    directory: Path,
    answers: Callable[[Request], Answer] = answer,
    status: Callable[[], Status] = lambda: STATUS_NOW,
) -> Iterator[list[Request]]:
    """Serve as the daemon of vm1 in ``directory``; yield the requests that it receives."""
    requests, end = RequestQueue(), threading.Event()
    asked_for: list[Request] = []

    def loop() -> None:
        while not end.wait(0.005):
            while (asked := requests.take()) is not None:
                asked_for.append(asked.request)
                asked.answer(answers(asked.request))

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        with serve_status(status_socket(directory, "vm1"), status, requests):
            yield asked_for
    finally:
        end.set()
        thread.join()
