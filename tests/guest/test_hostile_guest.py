"""A guest that turns hostile: its header, its tables and its note say other things than before."""

import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from guest.image.boot import Guest
from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.api.errors import NoAnswerError
from optpolined.api.status import DaemonPhase
from optpolined.config import GuestConfig, QemuConfig
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.recovery import find_leftovers
from optpolined.qemu.memory import RamRange, ram_ranges
from optpolined.session.link import Link, connect
from optpolined.telemetry.server import status_socket
from optpolined.telemetry.socket_client import read_status
from tests.guest.command import COMMAND, one_line, optpolined
from tests.guest.harness import load_state, write_config

CONFIG = """
[learning]
epoch_milliseconds = 200
[policy]
mode = "opt-in"
include = ["vfs_read", "vfs_write"]
"""
PATIENCE_SECONDS = 60
NOWHERE = struct.pack("<Q", 0xFFFF_8000_0000_0000)


@dataclass(frozen=True)
class Liar:
    """A guest as somebody sees it who may write anything to its memory."""

    guest: Guest
    link: Link
    ranges: list[RamRange]

    def field(self, name: str) -> GuestPhysical:
        """Where a field of the module's header is."""
        return self.at(self.link.attachment.header.field(name))

    def at(self, address: GuestVirtual) -> GuestPhysical:
        return self.link.attachment.space.translate(address)

    @contextmanager
    def says(self, address: GuestPhysical, data: bytes) -> Iterator[None]:
        """Let ``data`` stand at ``address`` within the block, and then what stood there before."""
        (host,) = (
            item.host + address - item.start
            for item in self.ranges
            if item.start <= address < item.end
        )
        memory = os.open(f"/proc/{self.guest.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        try:
            before = os.pread(memory, len(data), host)
            os.pwrite(memory, data, host)
            try:
                yield
            finally:
                os.pwrite(memory, before, host)
        finally:
            os.close(memory)


@pytest.fixture
def liar(guest: Guest) -> Iterator[Liar]:
    side = GuestConfig(
        qemu=QemuConfig(qmp_socket=guest.side_qmp), runtime_directory=guest.directory / "run"
    )
    with connect(side, writable=False) as link:
        yield Liar(guest, link, ram_ranges(link.monitor))


def symbol(liar: Liar, name: str) -> GuestPhysical:
    return liar.at(liar.link.attachment.vmcoreinfo.symbols[name])


def kernel_root(liar: Liar) -> GuestPhysical:
    """The entry of the kernel's own root that maps its text and its modules."""
    return GuestPhysical(liar.link.attachment.space.root + 8 * 511)


LIES: dict[str, tuple[Callable[[Liar], GuestPhysical], bytes, str]] = {
    "magic": (lambda liar: liar.field("magic"), b"no header at all", "has not loaded optpoline.ko"),
    "order": (lambda liar: liar.field("poke_order"), b"\xff" * 4, "poke_order = 0xffffffff"),
    "poke table": (lambda liar: liar.field("poke_table"), NOWHERE, "cannot be translated"),
    "count": (lambda liar: liar.field("modules_count"), b"\xff" * 4, "modules_count"),
    "note": (lambda liar: liar.link.attachment.header.vmcoreinfo, b"\xff" * 64, "no VMCOREINFO"),
    "kallsyms": (lambda liar: symbol(liar, "kallsyms_num_syms"), b"\xff" * 4, "claim 4294967295"),
    "page tables": (kernel_root, struct.pack("<Q", 1 << 45 | 1), "do not map the module"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_told_in_one_line(liar: Liar, tmp_path: Path, lie: str) -> None:
    """The guest is paused meanwhile: it could not run with such page tables."""
    write_config(liar.guest, tmp_path)
    place, data, complaint = LIES[lie]
    liar.link.monitor.execute("stop")
    try:
        with liar.says(place(liar), data):
            result = optpolined("--guest", "test", "--config-dir", tmp_path, "--dry-run")
    finally:
        liar.link.monitor.execute("cont")
    assert complaint in one_line(result)
    assert liar.guest.run("echo alive").strip() == "alive"


class Watched:
    """The daemon while it runs, and what it has said."""

    def __init__(self, guest: Guest, directory: Path) -> None:
        write_config(guest, directory, CONFIG)
        self._status = status_socket(guest.directory / "run", "test")
        self._errors = directory / "stderr"
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [COMMAND, "--guest", "test", "--config-dir", directory],
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    @property
    def said(self) -> list[str]:
        return self._errors.read_text().splitlines()

    def is_attached(self) -> bool:
        try:
            return read_status(self._status).phase is not DaemonPhase.ATTACHING
        except NoAnswerError:
            return False  # never yet

    def promotes(self) -> bool:
        return self.is_attached() and bool(read_status(self._status).targets_histogram)

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)

    def says(self, complaint: str) -> None:
        self.wait(lambda: any(complaint in line for line in self.said))


def test_a_guest_that_turns_hostile_is_let_go_and_taken_back(liar: Liar, tmp_path: Path) -> None:
    """Twice the daemon loses the guest, says why it cannot attach, and attaches again."""
    guest, link = liar.guest, liar.link
    guest.run("optload --state /run/optload >/dev/null 2>&1 &")
    daemon = Watched(guest, tmp_path)
    try:
        daemon.wait(daemon.promotes)
        for lie in ("order", "note"):
            place, data, complaint = LIES[lie]
            daemon.wait(daemon.is_attached)
            with liar.says(place(liar), data):
                with liar.says(liar.field("modules_count"), b"\xff" * 4):
                    daemon.says("modules_count")
                    daemon.wait(lambda: not daemon.is_attached())
                daemon.says(complaint)
                assert guest.run("echo alive").strip() == "alive"
        daemon.wait(daemon.promotes)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(PATIENCE_SECONDS) == 0, daemon.said
    finally:
        daemon.process.kill()
        daemon.process.wait()
        guest.run("killall optload; sleep 1")
    space, header = link.attachment.space, link.attachment.header
    assert find_leftovers(PokeEntries(space, header), space, header) == []
    assert all(line.startswith(("WARNING optpolined", "INFO optpolined")) for line in daemon.said)
    assert load_state(guest)["errors"] == 0
