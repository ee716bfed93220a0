"""Which process is QEMU, and whether it lives."""

import os
import subprocess
from pathlib import Path

import pytest

from optpolined.addresses import GuestPhysical, HostVirtual
from optpolined.qemu.errors import (
    MemoryMapError,
    PermissionDeniedError,
    ProcessError,
    ProcessGoneError,
)
from optpolined.qemu.memory import RamRange, is_mapped
from optpolined.qemu.proc import Proc
from optpolined.qemu.process import QemuProcess
from tests.unit.fakes.fake_proc import FakeProc

MTREE = (
    'FlatView #0\r\n AS "memory", root: system\r\n'
    "  0000000000000000-0000000000000fff (prio 0, ram): pc.ram\r\n"
)
QMP = Path("/run/vm1/qmp")

HOLDS_RAM = ("00001000-00002000 rw-p 00000000 00:00 0 ",)
"""A mapping of the guest's one page."""

QEMU, LIBVIRTD, OTHER = 100, 50, 200


class Peer:
    """A monitor whose socket process ``pid`` has opened, of a guest with one page at 0x1000."""

    def __init__(self, pid: int, mtree: str = MTREE) -> None:
        self.path = QMP
        self.pid = pid
        self.mtree = mtree

    def peer_pid(self) -> int:
        return self.pid

    def hmp(self, line: str) -> str:
        if line == "info mtree -f":
            return self.mtree
        address = int(line.split()[1], 16)
        return f"Host virtual address for 0x{address:x} (pc.ram) is 0x{0x1000 + address:x}\r\n"


@pytest.fixture
def fake(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
        ("qemu-system-x86", "/moved (deleted)"),
        ("kvm", "/usr/bin/x"),
        ("CPU 0/KVM", "/usr/bin/qemu-system-x86_64"),
    ],
)
def test_the_process_that_opened_the_socket_is_qemu(
    fake: FakeProc, name: str, program: str
) -> None:
    fake.add_process(QEMU, name, program=program, start_time=77, maps=HOLDS_RAM)
    assert QemuProcess.find(Peer(QEMU), fake.proc) == QemuProcess(QEMU, 77)


def test_a_qemu_that_was_handed_its_socket_is_found_by_it(fake: FakeProc) -> None:
    fake.add_process(LIBVIRTD, "libvirtd")
    fake.add_process(QEMU, "qemu-system-x86", maps=HOLDS_RAM, inodes=[11, 12])
    fake.add_process(OTHER, "qemu-system-x86", maps=HOLDS_RAM, inodes=[13, 14])
    fake.add_socket("/run/vm2/qmp", 11)
    fake.add_socket(QMP, 13, listens=False)
    fake.add_socket(QMP, 12)
    fake.add_socket("", 15)
    assert QemuProcess.find(Peer(LIBVIRTD), fake.proc).pid == QEMU


def test_a_path_with_spaces_is_found(fake: FakeProc) -> None:
    peer = Peer(LIBVIRTD)
    peer.path = Path("/run/a  guest/qmp")
    fake.add_process(QEMU, "qemu", maps=HOLDS_RAM, inodes=[12])
    fake.add_socket(peer.path, 12)
    assert QemuProcess.find(peer, fake.proc).pid == QEMU


@pytest.mark.parametrize("pid", [LIBVIRTD, 0, 1 << 30], ids=["another", "none", "absent"])
def test_a_process_that_is_not_qemu_is_refused(fake: FakeProc, pid: int) -> None:
    fake.add_process(LIBVIRTD, "libvirtd", maps=HOLDS_RAM)
    with pytest.raises(ProcessError, match=f"process {pid}, which is not QEMU"):
        QemuProcess.find(Peer(pid), fake.proc)


@pytest.mark.parametrize(
    "maps",
    [
        (),
        ("00001000-00001800 rw-p 00000000 00:00 0 ",),
        ("00001000-00002000 ---p 00000000 00:00 0 ",),
        ("nonsense",),
    ],
    ids=["no memory", "too little", "not readable", "nonsense"],
)
def test_a_qemu_that_does_not_have_the_guests_ram_is_refused(
    fake: FakeProc, maps: tuple[str, ...]
) -> None:
    fake.add_process(QEMU, "qemu", maps=maps)
    with pytest.raises(ProcessError):
        QemuProcess.find(Peer(QEMU), fake.proc)


def test_mappings_next_to_each_other_hold_a_range_together(fake: FakeProc) -> None:
    maps = ("00000000-00001800 r--p 00000000 00:00 0", "00001800-00002000 rw-p 00000000 00:00 0")
    fake.add_process(QEMU, "qemu", maps=maps)
    assert QemuProcess.find(Peer(QEMU), fake.proc).pid == QEMU


def test_a_qemu_whose_mappings_may_not_be_seen_is_taken_by_its_name(fake: FakeProc) -> None:
    class Denied(Proc):
        """Permissions do not bind root, and the tests may run as root."""

        def mappings(self, pid: int) -> list[tuple[int, int]]:
            raise PermissionDeniedError(str(pid))

    fake.add_process(QEMU, "qemu", maps=HOLDS_RAM)
    assert QemuProcess.find(Peer(QEMU), Denied(fake.proc.root)).pid == QEMU


def test_a_guest_without_ram_is_an_error(fake: FakeProc) -> None:
    with pytest.raises(MemoryMapError):
        QemuProcess.find(Peer(QEMU, "nonsense"), fake.proc)


@pytest.mark.parametrize("state", ["Z", "X"])
def test_a_process_that_has_ended_is_not_found(fake: FakeProc, state: str) -> None:
    fake.add_process(QEMU, "qemu", state=state, maps=HOLDS_RAM)
    with pytest.raises(ProcessError):
        QemuProcess.find(Peer(QEMU), fake.proc)


@pytest.mark.parametrize("name", ["qemu", "a) Z 1 (b", "(", ""])
def test_a_process_lives_whatever_its_name_is(fake: FakeProc, name: str) -> None:
    fake.add_process(QEMU, name, start_time=77)
    assert QemuProcess(QEMU, 77, fake.proc).is_alive()
    assert not QemuProcess(QEMU, 78, fake.proc).is_alive()
    assert not QemuProcess(OTHER, 77, fake.proc).is_alive()


def test_a_stat_that_is_cut_off_is_no_process(fake: FakeProc) -> None:
    fake.add_process(QEMU, "qemu")
    (fake.proc.root / str(QEMU) / "stat").write_text(f"{QEMU} (qemu) S 1")
    assert fake.proc.start_time(QEMU) is None


def test_the_memory_of_a_process_that_is_gone_cannot_be_opened(fake: FakeProc) -> None:
    with pytest.raises(ProcessGoneError, match="process 100 has ended"):
        fake.proc.open_memory(QEMU)
    with pytest.raises(ProcessGoneError, match="process 100 has ended"):
        is_mapped(QEMU, [RamRange(GuestPhysical(0), 1, HostVirtual(0))], fake.proc)


# The real /proc


def test_this_process_is_not_qemu() -> None:
    with pytest.raises(ProcessError, match="which is not QEMU"):
        QemuProcess.find(Peer(os.getpid()))


def test_a_process_lives_until_it_ends_even_as_a_zombie() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        process = QemuProcess(child.pid, int(fields[19]))
        assert process.is_alive()
        assert not QemuProcess(child.pid, process.start_time + 1).is_alive()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not process.is_alive()
    assert not process.is_alive()
