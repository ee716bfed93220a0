"""A guest whose text is watched: nothing is changed, put back or begun.

What is loaded here is a real module of LKRG's name and nothing more, because tests need no network.
LKRG itself (its main branch of June 2026, after 1.0.1) was loaded by hand, before a daemon and
under one: where text changes it panics the guest at its next check, which is not tested here.
"""

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guest.image.boot import Guest
from optpolined.config import PolicyConfig
from optpolined.session.link import connect
from optpolined.session.survey import Survey
from optpolined.session.text import TextRegion
from tests.guest.command import one_line, optpolined
from tests.guest.harness import config_of, write_config
from tests.guest.running import Running

SOURCE = """\
#include <linux/module.h>
static int lkrg_start(void) { return 0; }
static void lkrg_stop(void) { }
module_init(lkrg_start);
module_exit(lkrg_stop);
MODULE_LICENSE("GPL");
"""
"""With some code outside of the init sections: a module without any is not listed."""


@pytest.fixture(scope="module")
def lkrg(tmp_path_factory: pytest.TempPathFactory, guest: Guest) -> str:
    """Build a module named `lkrg` into the guest; return its path there."""
    directory = tmp_path_factory.mktemp("lkrg")
    (directory / "lkrg.c").write_text(SOURCE)
    (directory / "Kbuild").write_text("obj-m := lkrg.o\n")
    subprocess.run(
        ["make", "-C", guest.image.kernel.headers, f"M={directory}", "modules"],
        check=True,
        capture_output=True,
    )
    subprocess.run(["strip", "--strip-debug", directory / "lkrg.ko"], check=True)
    text = base64.b64encode((directory / "lkrg.ko").read_bytes()).decode()
    guest.run("rm -f /tmp/lkrg.b64")
    for start in range(0, len(text), 1500):
        guest.run(f"echo {text[start : start + 1500]} >>/tmp/lkrg.b64")
    guest.run("base64 -d </tmp/lkrg.b64 >/tmp/lkrg.ko")
    return "/tmp/lkrg.ko"


@pytest.fixture
def watched(guest: Guest, lkrg: str) -> Iterator[Callable[[], None]]:
    """A function that loads the module, which is removed after the test."""

    def load() -> None:
        guest.run(f"insmod {lkrg}")

    yield load
    guest.run("rmmod lkrg")


def kernel_text(guest: Guest) -> dict[TextRegion, bytes]:
    with connect(config_of(guest), writable=False) as link:
        return Survey(link.attachment, [], PolicyConfig(), {}).texts


def test_a_watched_guest_is_refused(
    guest: Guest, watched: Callable[[], None], tmp_path: Path
) -> None:
    watched()
    write_config(guest, tmp_path)
    for how in ((), ("--recover-only",)):
        result = optpolined("--guest", "test", "--config-dir", tmp_path, *how)
        assert "guarded by LKRG (module lkrg): not patched" in one_line(result)


def test_when_the_watch_comes_later_nothing_is_changed_any_more(
    guest: Guest, lkrg: str, tmp_path: Path
) -> None:
    before = kernel_text(guest)
    daemon = Running(guest, tmp_path)
    try:
        daemon.wait_for(lambda status: status.pokes > 1000)
        guest.run(f"insmod {lkrg}")
        code, errors = daemon.wait_end()
    finally:
        daemon.kill()
    assert code == 1
    assert "guarded by LKRG (module lkrg): not patched, and not put back" in errors
    assert "--recover-only" in errors
    report = json.loads(daemon.report_file.read_text())
    assert report["text_identical_after_detach"] is False
    assert report["text_differences"]
    assert report["pokes"] > 1000
    left = kernel_text(guest)
    assert left != before
    again = optpolined("--guest", "test", "--config-dir", tmp_path, "--recover-only")
    assert "guarded by LKRG" in one_line(again)
    assert kernel_text(guest) == left
    guest.run("rmmod lkrg")
    recovered = optpolined("--guest", "test", "--config-dir", tmp_path, "--recover-only")
    assert recovered.returncode == 0, recovered.stderr
    assert kernel_text(guest) == before
