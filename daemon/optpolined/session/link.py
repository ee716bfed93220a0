"""The way into a running guest, and out again."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from optpolined.config import GuestConfig
from optpolined.kernel.errors import KernelError
from optpolined.kernel.module.attachment import Attachment, attach
from optpolined.qemu.errors import PermissionDeniedError, QemuError
from optpolined.qemu.guardian import Guardian
from optpolined.qemu.held import HeldStub
from optpolined.qemu.memory import PhysicalMemory, ProcessMemory, StubMemory, ram_ranges
from optpolined.qemu.monitor import Monitor
from optpolined.qemu.process import QemuProcess
from optpolined.qemu.stopnote import StopNote, note_path
from optpolined.session.errors import AttachRefusedError, NothingToGainError
from optpolined.session.lock import held
from optpolined.session.migration import refuse_migration
from optpolined.session.rescue import resume_if_left, was_rescued
from optpolined.session.tally import Tally
from optpolined.session.transport.stopped import StoppedTransport
from optpolined.session.transport.stops import Stopper, StopStatistics

__all__ = (
    "AttachRefusedError",
    "Link",
    "NothingToGainError",
    "connect",
    "refuse_on_failure",
    "transport_of",
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Link:
    """A guest that is connected: what it says of itself, and the means to read, stop and write it.

    ``stub`` and ``guardian`` are absent where the guest is only looked at.  What takes long calls
    ``alive``, as long as it makes progress.
    """

    monitor: Monitor
    process: QemuProcess
    memory: PhysicalMemory
    attachment: Attachment
    qemu: str
    """Its version."""
    accelerator: str
    vcpus: int
    stub: HeldStub | None
    guardian: Guardian | None
    alive: Callable[[], None]


def transport_of(
    link: Link,
    config: GuestConfig,
    clock: Callable[[], float],
    statistics: StopStatistics | None = None,
) -> StoppedTransport:
    """The transport of ``link``, which must be writable."""
    assert link.stub is not None
    return StoppedTransport(
        stopper=Stopper(link.stub, clock, statistics, link.alive),
        writer=link.stub,
        memory=link.memory,
        space=link.attachment.space,
        budget_seconds=config.poke.stop_budget_microseconds / 1e6,
        clock=clock,
    )


@contextmanager
def connect(
    config: GuestConfig,
    *,
    writable: bool = True,
    tally: Tally | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Iterator[Link]:
    """Find the guest's process, memory, page tables and module; open its gdbstub where asked to.

    At the end everything is closed again; the guest runs if it ran before.

    :param tally: Where it is counted that the guest had been resumed after a daemon's death.
    :raise AttachRefusedError: with what is wrong and what to do, in one line.
    """
    with ExitStack() as stack:
        with refuse_on_failure():
            link = _connect(config, stack, tally or Tally(), alive, writable=writable)
        yield link


@contextmanager
def refuse_on_failure() -> Iterator[None]:
    """Turn what QEMU or the guest does wrong on the way in into a refusal to attach."""
    try:
        yield
    except (QemuError, KernelError) as error:
        raise AttachRefusedError(str(error)) from error


def _connect(
    config: GuestConfig,
    stack: ExitStack,
    tally: Tally,
    alive: Callable[[], None],
    *,
    writable: bool,
) -> Link:
    timeout = config.qemu.answer_timeout_seconds
    # Ends after the monitor: a guardian that must resume the guest needs the monitor's place.
    last = stack.enter_context(ExitStack())
    monitor = stack.enter_context(Monitor.connect(config.qemu.qmp_socket, timeout_seconds=timeout))
    process = QemuProcess.find(monitor)
    stub = guardian = None
    if writable:
        refuse_migration(monitor)
        last.enter_context(held(config.runtime_directory, process.pid))
        rescued = resume_if_left(monitor, process, config.runtime_directory)
        if rescued:
            _log.warning("%s", rescued)
        tally.rescues += was_rescued(process, config.runtime_directory)
        guardian = last.enter_context(_guardian(config, process))
        stub = _stub(config, monitor, process, guardian, stack)
    memory = _memory(config, monitor, process, stub)
    return Link(
        monitor=monitor,
        process=process,
        memory=memory,
        attachment=attach(memory, monitor.hmp("info registers -a")),
        qemu=_version(monitor),
        accelerator=_accelerator(monitor),
        vcpus=_vcpus(monitor),
        stub=stub,
        guardian=guardian,
        alive=alive,
    )


def _memory(
    config: GuestConfig, monitor: Monitor, process: QemuProcess, stub: HeldStub | None
) -> PhysicalMemory:
    ranges = ram_ranges(monitor)
    try:
        return ProcessMemory(process, ranges)
    except PermissionDeniedError as error:
        if stub is None or not config.qemu.allow_stub_reads:
            raise
        _log.warning("%s; reading through short stops of the guest instead, which is slow", error)
        return StubMemory(stub, ranges)


def _guardian(config: GuestConfig, process: QemuProcess) -> Guardian:
    path = note_path(config.runtime_directory, process.pid)
    try:
        note = StopNote.create(path, process.start_time)
    except OSError as error:
        raise AttachRefusedError(f"{path}: {error.strerror}") from error
    return Guardian.start(config.qemu.qmp_socket, note)


def _stub(
    config: GuestConfig,
    monitor: Monitor,
    process: QemuProcess,
    guardian: Guardian,
    stack: ExitStack,
) -> HeldStub:
    """Connect to the gdbstub; one that we open ourselves is closed again at the end."""
    stub = HeldStub(
        monitor,
        own=config.runtime_directory.absolute() / f"gdb-{process.pid}.sock",
        configured=config.qemu.gdbstub_socket,
        timeout_seconds=config.qemu.answer_timeout_seconds,
        guard=guardian,
    )
    stack.enter_context(stub)
    stub.take()
    return stub


def _version(monitor: Monitor) -> str:
    """QEMU's version as it tells it; empty where it does not."""
    answer = monitor.execute("query-version")
    numbers = answer.get("qemu") if isinstance(answer, dict) else None
    if not isinstance(numbers, dict):
        return ""
    return ".".join(str(numbers.get(part, "?")) for part in ("major", "minor", "micro"))


def _accelerator(monitor: Monitor) -> str:
    answer = monitor.execute("query-kvm")
    enabled = isinstance(answer, dict) and answer.get("enabled") is True
    return "kvm" if enabled else "tcg"


def _vcpus(monitor: Monitor) -> int:
    answer = monitor.execute("query-cpus-fast")
    return len(answer) if isinstance(answer, list) else 0
