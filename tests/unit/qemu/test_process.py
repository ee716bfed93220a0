"""Which process is QEMU, and whether it lives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from optpolined.qemu.errors import MemoryMapError, ProcessError
from optpolined.qemu.process import QemuProcess

NO_RAM_OF_OURS = (
    'FlatView #0\r\n AS "memory", root: system\r\n'
    "  0000000000000000-0000000000000fff (prio 0, ram): pc.ram\r\n"
)


class Peer:
    """A monitor whose socket process ``pid`` has opened."""

    def __init__(self, pid: int, mtree: str = NO_RAM_OF_OURS) -> None:
        self.path = Path("/nonexistent/qmp")
        self.pid = pid
        self.mtree = mtree

    def peer_pid(self) -> int:
        return self.pid

    def hmp(self, line: str) -> str:
        if line == "info mtree -f":
            return self.mtree
        address = int(line.split()[1], 16)
        return f"Host virtual address for 0x{address:x} (pc.ram) is 0x{0x1000 + address:x}\r\n"


@pytest.mark.parametrize("pid", [os.getpid(), 0, 1 << 30], ids=["ours", "none", "absent"])
def test_a_process_that_is_not_qemu_is_refused(pid: int) -> None:
    with pytest.raises(ProcessError, match=f"process {pid}, which is not QEMU"):
        QemuProcess.find(Peer(pid))


def test_a_qemu_that_does_not_have_the_guests_ram_is_refused() -> None:
    # The name alone makes no QEMU of it.
    program = """if True:
        import sys
        open("/proc/self/comm", "w").write("qemu-fake")
        print(flush=True)
        sys.stdin.read()
    """
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(ProcessError):
            QemuProcess.find(Peer(child.pid))


def test_a_guest_without_ram_is_an_error() -> None:
    with pytest.raises(MemoryMapError):
        QemuProcess.find(Peer(os.getpid(), "nonsense"))


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
