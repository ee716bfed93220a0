"""A guest that turns hostile: its header, its tables and its note change."""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from guest.image.boot import Guest
from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.api.status import DaemonPhase, Status
from optpolined.config import GuestConfig, QemuConfig
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.recovery import find_leftovers
from optpolined.qemu.memory import RamRange, ram_ranges
from optpolined.session.link import Link, connect
from tests.guest.command import one_line, optpolined
from tests.guest.harness import end_load, start_load, write_config
from tests.guest.running import Running

CONFIG = """
[policy]
mode = "opt-in"
include = ["vfs_read", "vfs_write"]
"""
NOWHERE = struct.pack("<Q", 0xFFFF_8000_0000_0000)


@dataclass(frozen=True)
class Liar:
    """A guest to whose memory the test may write anything."""

    guest: Guest
    link: Link
    ranges: list[RamRange]

    def field(self, name: str) -> GuestPhysical:
        """Return where a field of the module's header is."""
        return self.at(self.link.attachment.header.field(name))

    def at(self, address: GuestVirtual) -> GuestPhysical:
        return self.link.attachment.space.translate(address)

    @contextmanager
    def says(self, address: GuestPhysical, data: bytes) -> Iterator[None]:
        """Write ``data`` at ``address``; put back at the end what stood there before."""
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
    """Return the entry of the kernel's page table root that maps its text and its modules."""
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


def is_attached(status: Status) -> bool:
    return status.phase is not DaemonPhase.ATTACHING


def promotes(status: Status) -> bool:
    return is_attached(status) and status.promoted > 0


def test_a_guest_that_turns_hostile_is_let_go_and_taken_back(liar: Liar, tmp_path: Path) -> None:
    """Twice the daemon loses the guest, says why it cannot attach, and attaches again."""
    guest, link = liar.guest, liar.link
    start_load(guest)
    daemon = Running(guest, tmp_path, CONFIG)
    try:
        daemon.wait_for(promotes)
        for lie in ("order", "note"):
            place, data, complaint = LIES[lie]
            daemon.wait_for(is_attached)
            with liar.says(place(liar), data):
                with liar.says(liar.field("modules_count"), b"\xff" * 4):
                    daemon.wait_says("modules_count")
                    daemon.wait_for(lambda status: not is_attached(status))
                daemon.wait_says(complaint)
                assert guest.run("echo alive").strip() == "alive"
        daemon.wait_for(promotes)
        code, said = daemon.end()
        assert code == 0, said
    finally:
        daemon.kill()
        end_load(guest)
    space, header = link.attachment.space, link.attachment.header
    assert find_leftovers(PokeEntries(space, header), space, header) == []
    lines = said.splitlines()
    assert all(line.startswith(("WARNING optpolined", "INFO optpolined")) for line in lines)
