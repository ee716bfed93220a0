"""A guest that turns hostile while the daemon runs: its header and its note say other things."""

import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from guest.image.boot import Guest
from optpolined.addresses import GuestPhysical
from optpolined.config import GuestConfig, QemuConfig
from optpolined.kernel import abi
from optpolined.qemu.memory import RamRange, ram_ranges
from optpolined.service.attach import Link, connect
from optpolined.service.text import TextRegion, read_text
from tests.guest.harness import write_config
from tests.guest.test_command import COMMAND

PATIENCE_SECONDS = 30


class Scribbler:
    """Writes to the guest's RAM behind everybody's back."""

    def __init__(self, guest: Guest, ranges: list[RamRange]) -> None:
        self._memory = Path(f"/proc/{guest.pid}/mem")
        self._ranges = ranges

    @contextmanager
    def over(self, address: GuestPhysical, data: bytes) -> Iterator[None]:
        """Let ``data`` stand at ``address`` within the block, and then what stood there before."""
        (host,) = (
            item.host + address - item.start
            for item in self._ranges
            if item.start <= address < item.end
        )
        memory = os.open(self._memory, os.O_RDWR | os.O_CLOEXEC)
        try:
            before = os.pread(memory, len(data), host)
            os.pwrite(memory, data, host)
            try:
                yield
            finally:
                os.pwrite(memory, before, host)
        finally:
            os.close(memory)


def wait_for(condition: Callable[[], bool], said: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.1)


def kernel_text(link: Link) -> bytes:
    header, symbols = link.attachment.header, link.attachment.vmcoreinfo.symbols
    start = symbols["_stext"]
    region = TextRegion(start, min(header.thunk.values()) - start, None)
    return read_text(link.attachment.space, [region])[region]


def test_a_guest_that_turns_hostile_is_told_in_a_line_and_taken_back(
    guest: Guest, tmp_path: Path
) -> None:
    write_config(guest, tmp_path, "[learning]\nepoch_milliseconds = 200\n")
    said = tmp_path / "stderr"
    side = GuestConfig(
        qemu=QemuConfig(qmp_socket=guest.side_qmp), runtime_directory=guest.directory / "run"
    )
    guest.run("optload --state /run/optload >/dev/null 2>&1 &")
    with connect(side, writable=False) as link, said.open("w") as errors:
        space, header = link.attachment.space, link.attachment.header
        text = kernel_text(link)
        scribbler = Scribbler(guest, ram_ranges(link.monitor))
        daemon = subprocess.Popen(
            [COMMAND, "--guest", "test", "--config-dir", tmp_path],
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            physical = space.translate(header.address)

            def place(field: str) -> int:
                return physical + abi.offset_of(abi.Header, field)

            cases = (
                (physical, b"no header at all", "has not loaded optpoline.ko"),
                (place("modules_count"), b"\xff" * 4, "modules_count"),
                (place("poke_order"), b"\xff" * 4, "poke_order"),
                (place("poke_table"), struct.pack("<Q", 0xFFFF_8000_0000_0000), "cannot be"),
                (header.vmcoreinfo, b"\xff" * 64, "no VMCOREINFO note"),
            )
            for number, (address, data, complaint) in enumerate(cases, 1):
                wait_for(lambda: kernel_text(link) != text, said)
                with scribbler.over(GuestPhysical(address), data):
                    with scribbler.over(physical, bytes(16)):
                        wait_for(lambda: said.read_text().count("anew") == number, said)  # noqa: B023
                    wait_for(lambda: complaint in said.read_text(), said)  # noqa: B023
                    assert daemon.poll() is None, said.read_text()
                    assert guest.run("echo alive").strip() == "alive"
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(PATIENCE_SECONDS) == 0, said.read_text()
        finally:
            daemon.kill()
            daemon.wait()
            guest.run("killall optload; sleep 1")
        assert kernel_text(link) == text
    lines = said.read_text().splitlines()
    assert all(line.startswith(("WARNING optpolined", "INFO optpolined")) for line in lines), lines
