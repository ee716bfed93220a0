"""Attaching to guests of many shapes with nothing but their QMP socket."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from guest.image.boot import Guest
from guest.image.build import Image
from guest.image.paths import Flavour
from optpolined.kernel.module.module_list import read_modules
from optpolined.session.link import connect
from optpolined.session.survey import Survey
from tests.guest.harness import config_of, end_load, open_session, start_load
from tests.guest.running import Running, text_was_put_back
from tests.unit.kernel.dwarf import compiled, mirrored


def test_the_mirror_of_the_abi_is_what_the_compiler_made_of_it(
    images: dict[Flavour, Image],
) -> None:
    for image in images.values():
        assert compiled(image.modules["optpoline"]) == mirrored()


@pytest.mark.parametrize(
    ("flavour", "machine", "memory_mib", "append"),
    [
        ("cloud", "q35", 1024, "pti=on"),
        ("cloud", "q35", 4608, "pti=off"),
        ("cloud", "pc", 4608, "pti=on nokaslr"),
        ("cloud", "pc", 512, "no5lvl"),
        ("plain", "q35", 1024, "pti=on"),
    ],
)
def test_every_shape_of_guest(
    boot: Callable[..., Guest],
    flavour: Flavour,
    machine: Literal["q35", "pc"],
    memory_mib: int,
    append: str,
) -> None:
    guest = boot(flavour, machine=machine, memory_mib=memory_mib, append=append)
    with connect(config_of(guest), writable=False) as link:
        attachment = link.attachment
        assert attachment.vmcoreinfo.osrelease == guest.run("uname -r").strip()
        assert attachment.space.levels == (4 if "no5lvl" in append else 5)
        modules = read_modules(attachment.space, attachment.header)
        found = Survey(attachment, modules, config_of(guest).policy, {})
        assert found.inventory.found >= 7000
        own = found.symbols.address_of("vfs_read")
        assert f"{own:x}" == guest.run("grep ' vfs_read$' /proc/kallsyms").split()[0]


def test_the_sites_of_loaded_modules_are_found(guest: Guest) -> None:
    with open_session(config_of(guest)) as session:
        of_bench = [
            site for site in session.survey.inventory.eligible.values() if site.module == "optbench"
        ]
        assert {"optbench_call_1", "optbench_tail_4_random", "optbench_reg_r11"} <= {
            site.function for site in of_bench
        }
        assert session.survey.inventory.skipped["own"] == 15


def test_without_permission_to_read_qemus_memory_it_is_read_by_short_stops(
    boot: Callable[..., Guest], tmp_path: Path
) -> None:
    """Even as root, a process without capabilities may not read the memory of one that has some."""
    guest = boot()
    start_load(guest)
    few = '[policy]\nmode = "opt-in"\ninclude = ["vfs_read", "vfs_write"]\n'
    daemon = Running(guest, tmp_path, few, prefix=("setpriv", "--bounding-set=-all"))
    try:
        daemon.wait_for(lambda status: status.promoted > 0)
        code, errors = daemon.end()
    finally:
        daemon.kill()
    assert code == 0, errors
    assert "reading through short stops" in errors
    assert text_was_put_back(daemon)
    end_load(guest)
