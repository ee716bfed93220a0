"""The way into a running guest, and out again."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from optpolined.config import GuestConfig
from optpolined.errors import OptpolinedError
from optpolined.kernel.attach import Attachment, attach
from optpolined.kernel.errors import KernelError
from optpolined.qemu.errors import PermissionDeniedError, QemuError
from optpolined.qemu.gdbstub import GdbStub, close_stub, open_stub
from optpolined.qemu.guardian import Guardian
from optpolined.qemu.memory import PhysicalMemory, ProcessMemory, StubMemory, ram_ranges
from optpolined.qemu.monitor import Monitor
from optpolined.qemu.process import QemuProcess

__all__ = ("AttachRefusedError", "Link", "NothingToGainError", "connect", "refuse_on_failure")

_log = logging.getLogger(__name__)

_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class AttachRefusedError(OptpolinedError):
    """The guest cannot be attached to as it is, or as it is configured; nothing was changed."""


class NothingToGainError(OptpolinedError):
    """The guest has no retpolines to make direct."""

    def __init__(self, kernel: str) -> None:
        super().__init__(
            f"the guest's kernel {kernel} runs without retpolines: nothing to gain here "
            "(--force attaches all the same)"
        )


@dataclass(frozen=True, slots=True)
class Link:
    """A guest that is connected: what it says of itself, and the means to read, stop and write it.

    ``stub`` is absent where the guest is only looked at.
    """

    monitor: Monitor
    process: QemuProcess
    memory: PhysicalMemory
    attachment: Attachment
    accelerator: str
    vcpus: int
    stub: GdbStub | None


@contextmanager
def connect(config: GuestConfig, *, writable: bool = True) -> Iterator[Link]:
    """Find the guest's process, memory, page tables and module; open its gdbstub where asked to.

    At the end everything is closed again; the guest runs if it ran before.

    :raise AttachRefusedError: with what is wrong and what to do, in one line.
    """
    with ExitStack() as stack:
        with refuse_on_failure():
            link = _connect(config, stack, writable=writable)
        yield link


@contextmanager
def refuse_on_failure() -> Iterator[None]:
    """Turn what QEMU or the guest does wrong on the way in into a refusal to attach."""
    try:
        yield
    except (QemuError, KernelError) as error:
        raise AttachRefusedError(str(error)) from error


def _connect(config: GuestConfig, stack: ExitStack, *, writable: bool) -> Link:
    timeout = config.qemu.connect_timeout_seconds
    monitor = stack.enter_context(Monitor.connect(config.qemu.qmp_socket, timeout_seconds=timeout))
    process = QemuProcess.find(monitor)
    stub = None
    if writable:
        stack.enter_context(_only_one(config.runtime_directory, process))
        stub = _stub(config, monitor, process, stack)
    memory = _memory(config, monitor, process, stub)
    return Link(
        monitor=monitor,
        process=process,
        memory=memory,
        attachment=attach(memory, monitor.hmp("info registers -a")),
        accelerator=_accelerator(monitor),
        vcpus=_vcpus(monitor),
        stub=stub,
    )


def _memory(
    config: GuestConfig, monitor: Monitor, process: QemuProcess, stub: GdbStub | None
) -> PhysicalMemory:
    ranges = ram_ranges(monitor)
    try:
        return ProcessMemory(process, ranges)
    except PermissionDeniedError as error:
        if stub is None or not config.qemu.allow_stub_reads:
            raise
        _log.warning("%s; reading through short stops of the guest instead, which is slow", error)
        return StubMemory(stub, ranges)


def _stub(config: GuestConfig, monitor: Monitor, process: QemuProcess, stack: ExitStack) -> GdbStub:
    """Connect to the gdbstub; one that we open ourselves is closed again at the end."""
    own = config.runtime_directory.absolute() / f"gdb-{process.pid}.sock"
    opened = open_stub(monitor, config.qemu.gdbstub_socket or own)
    if opened == own:
        stack.callback(close_stub, monitor)
    guardian = stack.enter_context(Guardian.start(config.qemu.qmp_socket))
    timeout = config.qemu.connect_timeout_seconds
    ran = monitor.status() == "running"
    stub = stack.enter_context(GdbStub.connect(opened, timeout_seconds=timeout, guard=guardian))
    if ran and monitor.status() != "running":
        # From 8.1 on, QEMU does not tell a client that connecting has stopped the guest.
        monitor.execute("cont")
    return stub


@contextmanager
def _only_one(directory: Path, process: QemuProcess) -> Iterator[None]:
    """Hold the lock of this QEMU process; it ends with the daemon, however that ends.

    :raise AttachRefusedError: another daemon holds it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / f"qemu-{process.pid}.lock", _LOCK_FLAGS, 0o600)
    except OSError as error:
        raise AttachRefusedError(
            f"{error.filename}: {error.strerror}; runtime_directory must be writable"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise AttachRefusedError(
            f"another optpolined serves this guest (QEMU process {process.pid}): stop it first"
        ) from error
    try:
        yield
    finally:
        os.close(lock)


def _accelerator(monitor: Monitor) -> str:
    answer = monitor.execute("query-kvm")
    enabled = isinstance(answer, dict) and answer.get("enabled") is True
    return "kvm" if enabled else "tcg"


def _vcpus(monitor: Monitor) -> int:
    answer = monitor.execute("query-cpus-fast")
    return len(answer) if isinstance(answer, list) else 0
