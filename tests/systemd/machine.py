"""Boots a Debian with systemd in QEMU: a small host with a guest of its own under KVM.

    with Machine(build()) as machine:
        machine.wait_ready()
        print(machine.run("systemctl start optpolined@vm1"))

The outer machine is emulated, and so is its SVM, with which kvm-amd works.
"""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from guest.image.channel import Channel
from guest.image.errors import GuestTimeoutError, QemuEndedError
from tests.systemd.debian import Disks

__all__ = ("Machine",)

_COMMAND_LINE = (
    "console=ttyS0 quiet no_timer_check mitigations=off systemd.unit=multi-user.target "
    "systemd.firstboot=off systemd.wants=agent.service systemd.mask=serial-getty@ttyS0.service "
    "systemd.mask=getty@tty1.service systemd.show_status=no"
)
_CONSOLE_TAIL = 3000
_LOOK_SECONDS = 0.5


class Machine:
    """Runs as long as its ``with`` block; the thread that enters the block must outlive it."""

    def __init__(self, disks: Disks) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="optpolined-systemd-"))
        self._command = (
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"),
            *("-accel", "tcg,thread=multi", "-cpu", "max,+svm", "-smp", "2", "-m", "2048"),
            *("-kernel", str(disks.kernel), "-initrd", str(disks.initramfs)),
            *("-append", _COMMAND_LINE),
            *("-serial", f"file:{self._console_log}"),
            *("-chardev", f"socket,id=commands,path={self._commands}"),
            *("-serial", "chardev:commands"),
            *(
                argument
                for disk in (disks.debian, disks.ours)
                for argument in ("-drive", f"file={disk},format=raw,if=virtio,readonly=on")
            ),
        )
        self._process: subprocess.Popen[bytes]
        self._channel: Channel

    @property
    def _console_log(self) -> Path:
        return self._directory / "console.log"

    @property
    def _commands(self) -> Path:
        return self._directory / "commands"

    def __enter__(self) -> Self:
        self._channel = Channel(self._commands, self._look)
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._channel.close()
        shutil.rmtree(self._directory)

    def wait_ready(self, timeout_seconds: float = 240) -> None:
        """Wait until systemd has started the agent that runs commands.

        :raise GuestTimeoutError: it does not, in time.
        :raise QemuEndedError: QEMU is gone.
        """
        try:
            self._channel.wait_ready(timeout_seconds)
        except GuestTimeoutError as late:
            raise GuestTimeoutError(f"no systemd: {self.console()[-_CONSOLE_TAIL:]}") from late

    def try_run(self, command: str, timeout_seconds: float = 300) -> tuple[int, str]:
        """Run a shell command; return its exit code and what it printed on both its outputs."""
        status, printed = self._channel.run(command, timeout_seconds)
        return status, printed.decode(errors="replace").strip()

    def run(self, command: str, timeout_seconds: float = 300) -> str:
        """Run a shell command that must succeed; return what it printed."""
        status, printed = self.try_run(command, timeout_seconds)
        assert status == 0, f"{command}: exit code {status}: {printed}"
        return printed

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit, as systemd reports them."""
        printed = self.run(f"systemctl show {unit} -p {','.join(properties)}")
        return dict(line.partition("=")[::2] for line in printed.splitlines())

    def journal(self, *matches: str) -> list[dict[str, object]]:
        """Return the entries of the journal that match, oldest first, each as its fields."""
        self.run("journalctl --sync")
        printed = self.run(f"journalctl -q --no-pager -o json {' '.join(matches)}")
        return [json.loads(line) for line in printed.splitlines()]

    def until(self, holds: Callable[[], bool], what: str, timeout_seconds: float = 300) -> None:
        """Wait until ``holds``; fail with the end of the journal if it does not."""
        deadline = time.monotonic() + timeout_seconds
        while not holds():
            if time.monotonic() > deadline:
                said = self.run("journalctl -q --no-pager -n 60")
                raise AssertionError(f"not in {timeout_seconds} s: {what}\n{said}")
            time.sleep(_LOOK_SECONDS)

    def console(self) -> str:
        """Return what kernel and systemd wrote on the console."""
        return self._console_log.read_text(errors="replace") if self._console_log.exists() else ""

    def _look(self) -> None:
        if self._process.poll() is not None:
            assert self._process.stderr is not None
            raise QemuEndedError(self._process.stderr.read().decode(errors="replace"))
        if "Kernel panic" in self.console():
            raise QemuEndedError(f"a panic: {self.console()[-_CONSOLE_TAIL:]}")
