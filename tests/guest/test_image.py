"""The small guest itself: it boots, runs commands, and ends with the test."""

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from guest.image.boot import Guest
from guest.image.build import Image
from guest.image.errors import GuestCommandError, GuestError, GuestTimeoutError, QemuEndedError
from guest.image.paths import FLAVOURS, GUEST, Flavour
from tests.guest.harness import wait_until

Boot = Callable[..., Guest]

_TEXT_WITHOUT_KASLR = 0xFFFFFFFF81000000
_TROUBLE = re.compile(r"cut here|BUG:|Oops|Call Trace|unwind")


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture(scope="module")
def fresh(images: dict[Flavour, Image]) -> Iterator[dict[Flavour, Guest]]:
    """A guest of each flavour, as it comes up."""
    with ExitStack() as running:
        guests = {flavour: running.enter_context(Guest(flavour)) for flavour in images}
        for booting in guests.values():
            booting.wait_ready()
        yield guests


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_kernel_uses_retpolines(fresh: dict[Flavour, Guest], flavour: Flavour) -> None:
    booted = fresh[flavour]
    assert booted.run("uname -r").strip() == booted.image.kernel.release
    spectre = booted.run("cat /sys/devices/system/cpu/vulnerabilities/spectre_v2")
    assert spectre.startswith("Mitigation: Retpolines")


def test_kaslr_is_on(fresh: dict[Flavour, Guest], guest: Guest) -> None:
    # By chance, KASLR moves none of three kernels once in 10^8 runs.
    texts = [
        int(booted.run("grep -m1 ' _text$' /proc/kallsyms").split()[0], 16)
        for booted in (guest, *fresh.values())
    ]
    assert set(texts) != {_TEXT_WITHOUT_KASLR}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_modules_load_without_a_warning(fresh: dict[Flavour, Guest], flavour: Flavour) -> None:
    booted = fresh[flavour]
    loaded = booted.run("cut -d' ' -f1 /proc/modules").split()
    assert sorted(loaded) == sorted(booted.image.modules)
    assert "optpoline" in loaded
    assert not _TROUBLE.search(booted.run("dmesg")), booted.run("dmesg | tail -n 60")


def test_command_line_asks_for_no_module_and_a_workload(boot: Boot) -> None:
    asked = boot(append='noload workload="echo started; exec sleep 1000"')
    assert "optpoline" not in asked.run("cat /proc/modules")
    asked.run("insmod /lib/modules/optpoline.ko && rmmod optpoline")
    asked.run("until pidof sleep; do sleep 0.1; done")
    assert asked.run("cat /run/workload.log") == "started\n"


def test_command_prints_both_outputs(guest: Guest) -> None:
    assert guest.run("echo out; echo err >&2") == "out\nerr\n"
    assert guest.run("printf '\\303\\274 no newline'") == "ü no newline"
    assert len(guest.run("yes 0123456789abcde | head -n 8192")) == 8192 * 16


def test_command_that_fails(guest: Guest) -> None:
    with pytest.raises(GuestCommandError, match="exit code 3 of 'echo why; exit 3'") as failed:
        guest.run("echo why; exit 3")
    assert (failed.value.status, failed.value.output) == (3, "why\n")


def test_command_that_hangs_is_killed(guest: Guest) -> None:
    with pytest.raises(GuestTimeoutError, match="took longer than 1 s"):
        guest.run("exec sleep 1001", timeout_seconds=1)
    wait_until(
        lambda: guest.run("ps -o args"), "the command is gone", lambda shown: "1001" not in shown
    )


def test_command_that_is_too_long(guest: Guest) -> None:
    with pytest.raises(ValueError, match="at most 2000"):
        guest.run("x" * 2001)


def test_poweroff_ends_qemu(boot: Boot) -> None:
    ending = boot(append="noload")
    with pytest.raises(QemuEndedError):
        ending.run("poweroff -f")
    assert ending.wait_end() == 0
    assert not is_running(ending.pid)


def test_reset_boots_again_and_quit_ends_qemu(boot: Boot) -> None:
    obeying = boot(append="noload")
    obeying.run("touch /run/before")
    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.connect(str(obeying.side_qmp))
        qmp.sendall(b'{"execute": "qmp_capabilities"}{"execute": "system_reset"}')
        obeying.wait_ready()
        obeying.run("test ! -e /run/before")
        qmp.sendall(b'{"execute": "quit"}')
        assert obeying.wait_end() == 0


def test_panic_is_said_at_once(boot: Boot) -> None:
    dying = boot(append="noload panic=0")
    with pytest.raises(QemuEndedError, match="sysrq triggered crash"):
        dying.run("echo c >/proc/sysrq-trigger")


def test_bad_qemu_option_is_said_at_once(images: dict[Flavour, Image]) -> None:
    with (
        Guest(images["cloud"].flavour, extra_args=("-no-such-option",)) as failing,
        pytest.raises(QemuEndedError, match="invalid option"),
    ):
        failing.wait_ready()


def test_directory_that_is_open_to_others(images: dict[Flavour, Image], tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with (
        pytest.raises(GuestError, match="open to others"),
        Guest(images["cloud"].flavour, directory=tmp_path),
    ):
        pass


def test_directory_too_deep_for_sockets(images: dict[Flavour, Image], tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="too long"):
        Guest(images["cloud"].flavour, directory=tmp_path / ("x" * 100))


def test_kill_leaves_nothing(boot: Boot) -> None:
    killed = boot(append="noload", with_gdbstub=True)
    assert killed.gdb.is_socket()
    assert killed.directory.stat().st_mode & 0o777 == 0o700
    killed.kill()
    assert not is_running(killed.pid)
    with pytest.raises(QemuEndedError):
        killed.run("true")


def test_qemu_dies_with_us(images: dict[Flavour, Image], tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from guest.image.boot import Guest\n"
        "with Guest(sys.argv[1], directory=Path(sys.argv[2])) as guest:\n"
        "    print(guest.pid, flush=True); time.sleep(1000)\n"
    )
    with subprocess.Popen(
        (sys.executable, "-c", script, images["cloud"].flavour, tmp_path / "run"),
        stdout=subprocess.PIPE,
        cwd=GUEST.parent,
    ) as owner:
        try:
            assert owner.stdout is not None
            pid = int(owner.stdout.readline())
            wait_until((tmp_path / "run" / "qmp").is_socket, "QEMU makes its socket")
        finally:
            owner.kill()
        wait_until(lambda: not is_running(pid), "QEMU ends")
