"""What the gcc plugin made of optseed: unpatched, and at work in a guest."""

import re
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from elftools.elf.elffile import ELFFile

from guest.image import kbuild
from guest.image.boot import Guest
from guest.image.build import Image
from guest.image.errors import BuildError, GuestCommandError
from guest.image.paths import FLAVOURS, Flavour
from optpolined.kernel.sites.declarations import DeclarationKind
from optpolined.x86 import Register
from tests.guest.harness import bench_calls, wait_bench, wait_until

_RUN = struct.Struct("<IHHII")
_RECORD = struct.Struct("<iiBBBBB3x")
_MAGIC = 0x5354504F
_INLINE = (DeclarationKind.INLINE_CALL, DeclarationKind.INLINE_JMP)
_CALLS_AT_LEAST = 500
# A line of dmesg that tells of trouble.
_TROUBLE = re.compile(r"cut here|WARNING|BUG:|Oops|Call Trace|unwind|optseed: ")


class Record(NamedTuple):
    kind: DeclarationKind
    register: int
    key: tuple[int, int, int]


def records(module: Path) -> list[Record]:
    """Return the records that the plugin wrote into ``module``."""
    with module.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".optpoline_sites")
        assert section is not None
        data = section.data()
    found, at = [], 0
    while at < len(data):
        magic, version, size, count, reserved = _RUN.unpack_from(data, at)
        assert (magic, version, size, reserved) == (_MAGIC, 1, _RECORD.size, 0)
        at += _RUN.size
        for _ in range(count):
            _, _, kind, register, *key = _RECORD.unpack_from(data, at)
            found.append(Record(DeclarationKind(kind), register, (key[0], key[1], key[2])))
            at += _RECORD.size
    assert at == len(data)
    return found


def errors_meanwhile(guest: Guest, name: str) -> int:
    """Count the errors of a scenario while it makes some batches of calls."""
    _, before = bench_calls(guest, "optseed")[name]
    _, after = wait_bench(guest, [name], _CALLS_AT_LEAST, "optseed")[name]
    return after - before


@pytest.fixture(scope="module")
def seed(images: dict[Flavour, Image]) -> Iterator[Guest]:
    """A guest with everything loaded, and optseed's scenarios under way."""
    with Guest(images["cloud"].flavour, append="seed") as booted:
        booted.wait_ready()
        booted.run("echo rate 50 >/proc/optseed; echo run all >/proc/optseed")
        yield booted


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_optseed_has_sites_of_every_kind(images: dict[Flavour, Image], flavour: Flavour) -> None:
    found = records(images[flavour].seed_modules["optseed"])
    kinds = Counter(record.kind for record in found)
    assert set(kinds) == set(DeclarationKind)
    assert kinds[DeclarationKind.TRAMPOLINE] == 2
    inline = [record for record in found if record.kind in _INLINE]
    assert {record.register for record in inline} == set(Register) - {Register.RSP}
    keys = Counter(record.key for record in inline)
    no_key = (0xFF, 0, 0)
    assert set(keys) == {
        no_key,
        (Register.RSI, 0, 4),
        (Register.RSI, 5, 4),
        (Register.RDI, 6, 4),
    }


def test_modules_are_loaded(seed: Guest) -> None:
    loaded = seed.run("cut -d' ' -f1 /proc/modules").split()
    assert sorted(loaded) == sorted([*seed.image.modules, *seed.image.seed_modules])


def test_each_shape_gives_what_it_should(seed: Guest) -> None:
    counts = wait_until(
        lambda: bench_calls(seed, "optseed"),
        "each scenario is called",
        lambda counts: min(calls for calls, _ in counts.values()) > _CALLS_AT_LEAST,
    )
    assert {errors for _, errors in counts.values()} == {0}


def test_static_calls_reach_their_first_target_only(seed: Guest) -> None:
    static = [name for name in bench_calls(seed, "optseed") if name.startswith("static_")]
    wait_bench(seed, static, _CALLS_AT_LEAST, "optseed")
    lines = seed.run("cat /proc/optseed_static").splitlines()
    reached = {
        (fields["name"], fields["target"])
        for fields in (dict(word.split("=") for word in line.split()) for line in lines)
        if fields["calls"] != "0"
    }
    numbers = ("inline", "inline_tail", "opted_out", "outline", "outline_tail")
    assert reached == {
        *((f"static_{name}", "optseed_number_0") for name in numbers),
        *((f"static_{name}_event", "none") for name in ("inline", "outline")),
    }


def test_static_call_that_reaches_another_target_is_an_error(seed: Guest) -> None:
    with pytest.raises(GuestCommandError, match="Invalid argument"):
        seed.run("echo optseed_number none >/proc/optseed_static")
    seed.run("echo optseed_number optseed_number_1 optseed_number_3 >/proc/optseed_static")
    wait_until(lambda: bench_calls(seed, "optseed")["static_inline"][1], "calls are wrong")
    seed.run("echo optseed_number optseed_number_1 optseed_number_0 >/proc/optseed_static")
    # A batch that has begun ends; from then on none is wrong.
    errors_meanwhile(seed, "static_inline")
    assert errors_meanwhile(seed, "static_inline") == 0
    seed.run("echo optseed_number optseed_number_0 >/proc/optseed_static")
    seed.run("echo stop >/proc/optseed; echo reset >/proc/optseed; echo run all >/proc/optseed")


def test_stack_traces_are_whole(seed: Guest) -> None:
    wait_bench(seed, ["stack_call", "stack_tail"], _CALLS_AT_LEAST, "optseed")
    shown = seed.run("cat /proc/optseed_stack")
    traces = re.findall(r"^trace=(\w+) .*\n((?: .*\n)*)", shown, re.MULTILINE)
    names = {
        name: [re.sub(r"_[01]$", "", line.split("+")[0].strip()) for line in lines.splitlines()]
        for name, lines in traces
    }
    to_the_end = ["optbench_one_batch", "optbench_thread", "kthread", "ret_from_fork"]
    assert names == {
        "slow": ["optseed_traced", "optseed_stack_call", "batch_stack_call", *to_the_end],
        "fast": [],
        "tail": ["optseed_traced", "batch_stack_tail", *to_the_end],
    }


def test_kernel_has_nothing_to_complain_about(seed: Guest) -> None:
    assert not _TROUBLE.search(seed.run("dmesg | grep -v static_")), seed.run("dmesg | tail -n 60")
    seed.run("rmmod optseed && insmod /lib/modules/seed/optseed.ko")


def test_warning_of_the_compiler_fails_a_build(
    images: dict[Flavour, Image], tmp_path: Path
) -> None:
    (tmp_path / "Kbuild").write_text("obj-m := careless.o\n")
    (tmp_path / "careless.c").write_text("static int unused;\n")
    with pytest.raises(BuildError, match=r"warning: .unused. defined but not used"):
        kbuild.build_modules(
            images["cloud"].kernel, tmp_path, what="build a careless module", with_plugin=False
        )
