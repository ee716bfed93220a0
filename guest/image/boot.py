"""Boot the small guest in QEMU.

with Guest(append="noload") as guest:
    guest.wait_ready()
    print(guest.run("uname -r"))
"""

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from guest.image.build import Image, load
from guest.image.channel import Channel
from guest.image.errors import GuestCommandError, GuestError, GuestTimeoutError, QemuEndedError
from guest.image.paths import Flavour

__all__ = ("Guest", "accelerator")

# Debian's own choice on a CPU that needs retpolines.  A CPU with enhanced IBRS would run without.
# The kernel panics where ten ticks do not come in time, as under TCG on a busy machine: it checks
# that on no known hypervisor (Linux v6.1 arch/x86/kernel/apic/io_apic.c, timer_irq_works).
_COMMAND_LINE = "console=ttyS0 quiet no_timer_check spectre_v2=retpoline"

_SOCKET_PATH_MAX = 107
_PANIC = "Kernel panic - not syncing"
_CONSOLE_TAIL = 3000


def accelerator() -> str:
    """Return the value of QEMU's ``-accel`` for this machine.

    A /dev/kvm that opens says little: without VMX or SVM in the CPU it runs no stock kernel.
    """
    flags = Path("/proc/cpuinfo").read_text().split()
    if ("vmx" in flags or "svm" in flags) and os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "kvm"
    return "tcg,thread=multi"


class Guest:
    """A guest that runs as long as its ``with`` block, and never longer than this process.

    The thread that enters the block must outlive it: QEMU dies with that thread.

    :param append: for the kernel's command line; ``noload`` keeps optpoline.ko out, and
        ``workload="..."`` is a shell command to start in the background, its output in
        /run/workload.log.
    :param extra_args: for QEMU's command line, after all others.
    :param directory: for sockets and logs, kept afterwards; without it, a temporary one is used.
        It is for one guest at a time, and closed to other users.
    :param with_gdbstub: QEMU opens its gdbstub at once, on the socket ``gdb``.
    :raise GuestError: the image was not built, or the directory is open to others or its path too
        long for a socket.
    """

    def __init__(
        self,
        flavour: Flavour = "cloud",
        *,
        vcpus: int = 2,
        memory_mib: int = 1024,
        append: str = "",
        machine: Literal["q35", "pc"] = "q35",
        extra_args: Sequence[str] = (),
        directory: Path | None = None,
        with_gdbstub: bool = False,
    ) -> None:
        self.image: Image = load(flavour)
        self.directory = directory or Path(tempfile.mkdtemp(prefix="optpolined-guest-"))
        self._is_temporary = directory is None
        self.qmp = self.directory / "qmp"
        """The QMP socket for the daemon: QEMU serves one client at a time."""
        self.side_qmp = self.directory / "side-qmp"
        """A second QMP socket, for what else observes or disturbs the guest."""
        self.gdb = self.directory / "gdb"
        if len(os.fsencode(self.side_qmp)) > _SOCKET_PATH_MAX:
            raise GuestError(f"the path of {self.directory} is too long for unix sockets")
        self._command = (
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", machine, "-accel", accelerator(), "-cpu", "max"),
            *("-smp", str(vcpus), "-m", str(memory_mib)),
            *("-kernel", str(self.image.kernel.vmlinuz), "-initrd", str(self.image.initramfs)),
            *("-append", f"{_COMMAND_LINE} {append}"),
            *("-serial", f"file:{self._console_log}"),
            *("-chardev", f"socket,id=commands,path={self._commands}"),
            *("-serial", "chardev:commands"),
            *("-qmp", f"unix:{self.qmp},server=on,wait=off"),
            *("-qmp", f"unix:{self.side_qmp},server=on,wait=off"),
            *(("-gdb", f"unix:{self.gdb},server=on,wait=off") if with_gdbstub else ()),
            *extra_args,
        )
        self._one_command = threading.Lock()
        self._process: subprocess.Popen[bytes]
        self._channel: Channel

    @property
    def _console_log(self) -> Path:
        return self.directory / "console.log"

    @property
    def _commands(self) -> Path:
        return self.directory / "commands"

    @property
    def _qemu_log(self) -> Path:
        return self.directory / "qemu.log"

    def __enter__(self) -> Self:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.directory.stat().st_mode & 0o077:
            raise GuestError(f"{self.directory} is open to others, who could rule the guest")
        for name in (self.qmp, self.side_qmp, self.gdb, self._commands, self._console_log):
            name.unlink(missing_ok=True)
        self._channel = Channel(self._commands, self._look)
        with self._qemu_log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._channel.close()
        if self._is_temporary:
            shutil.rmtree(self.directory)

    @property
    def pid(self) -> int:
        """Return the PID of QEMU."""
        return self._process.pid

    def wait_ready(self, timeout_seconds: float = 120) -> None:
        """Wait until the guest has booted; call it once after the start and after each reset.

        :raise GuestTimeoutError: it does not, in time.
        :raise QemuEndedError: QEMU is gone.
        """
        with self._one_command:
            try:
                self._channel.wait_ready(timeout_seconds)
            except GuestTimeoutError as late:
                console = self.console()[-_CONSOLE_TAIL:]
                raise GuestTimeoutError(f"no guest after {timeout_seconds} s: {console}") from late

    def run(self, command: str, timeout_seconds: float = 180) -> str:
        """Run a shell command in the guest; return what it printed on both its outputs.

        :raise GuestCommandError: its exit code is not 0.
        :raise GuestTimeoutError: it takes longer (and is killed), or the guest does not answer.
        :raise QemuEndedError: QEMU is gone.
        """
        with self._one_command:
            status, printed = self._channel.run(command, timeout_seconds)
        output = printed.decode(errors="replace")
        if status != 0:
            raise GuestCommandError(command, status, output)
        return output

    def console(self) -> str:
        """Return what the kernel and init wrote on the console so far."""
        return self._console_log.read_text(errors="replace") if self._console_log.exists() else ""

    def wait_end(self, timeout_seconds: float = 30) -> int:
        """Wait until QEMU ends by itself, as after ``poweroff -f``; return its exit code.

        :raise GuestTimeoutError: it does not, in time.
        """
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as late:
            raise GuestTimeoutError(f"QEMU still runs after {timeout_seconds} s") from late

    def kill(self) -> None:
        """End QEMU at once, if it still runs."""
        self._process.kill()
        self._process.wait()

    def _look(self) -> None:
        """Raise if the guest can no longer answer."""
        if self._process.poll() is not None:
            printed = self._qemu_log.read_text(errors="replace").strip()
            raise QemuEndedError(f"QEMU ended with {self._process.returncode}: {printed}")
        console = self.console()
        if _PANIC in console:
            raise QemuEndedError(f"the guest panicked: {console[-_CONSOLE_TAIL:]}")
