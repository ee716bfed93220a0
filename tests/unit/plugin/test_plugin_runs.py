"""Code that was compiled with the plugin, executed: unlearned, learned, and half way."""

import struct
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.plugin.plugin_tools import (
    INLINE_CALL,
    INLINE_JMP,
    KERNEL_FLAGS,
    SHAPES,
    STATIC_CALL,
    STATIC_JMP,
    TRAMPOLINE,
    Compiler,
    Image,
    Record,
    branch,
    run,
)

STATICS = ("static_call", "static_tail", "static_null")


@dataclass(frozen=True)
class Counts:
    calls: int
    errors: int
    thunk: int
    """Calls that went through a thunk."""


@dataclass
class Program:
    """The shapes, compiled with the plugin and without, and a main that compares them."""

    image: Image

    def patched(self, changes: dict[int, bytes], folder: Path) -> Path:
        """A copy with bytes replaced, by address."""
        content = bytearray(self.image.path.read_bytes())
        for address, code in changes.items():
            section = self.image.section_of(address)
            at = section.offset + address - section.address
            content[at : at + len(code)] = code
        copy = folder / "patched"
        copy.write_bytes(content)
        copy.chmod(0o755)
        return copy

    def run(self, changes: dict[int, bytes], folder: Path, target: int = 0) -> dict[str, Counts]:
        """What each shape did; static calls are expected to call target 0 or 1."""
        program = self.patched(changes, folder)
        lines = [line.split() for line in run(program, str(target)).splitlines()]
        return {name: Counts(*map(int, counts)) for name, *counts in lines}

    def target_of(self, record: Record, number: int = 0) -> int:
        """What an inline site learns: the function NAME_0 for a site in shape_NAME."""
        name = self.image.function_of(record.site).removeprefix("shape_").removesuffix("_void")
        return self.image.functions[f"{name}_{number}"].start

    def inline(self) -> list[Record]:
        return [record for record in self.image.records if record.kind in {INLINE_CALL, INLINE_JMP}]


def compare(record: Record, target: int) -> dict[int, bytes]:
    return {record.site + 3: struct.pack("<i", target)}


def direct(record: Record, target: int) -> dict[int, bytes]:
    opcode = 0xE8 if record.kind == INLINE_CALL else 0xE9
    return {record.site + 9: branch(record.site + 9, opcode, target)}


@pytest.fixture(scope="module", params=["-O2", "-Os"])
def program(request: pytest.FixtureRequest, compiler: Compiler) -> Program:
    level = request.param
    objects = [
        compiler.file(SHAPES / "shapes.c", level, *KERNEL_FLAGS),
        compiler.file(SHAPES / "shapes.c", level, "-fno-pie", "-DPLAIN", plugin=None),
        compiler.file(SHAPES / "targets.c", level, "-fno-pie", plugin=None),
        compiler.file(SHAPES / "main.c", level, "-fno-pie", plugin=None),
        compiler.thunks,
    ]
    built = compiler.folder / f"shapes{level}"
    run("gcc", "-static", "-no-pie", "-o", built, *objects)
    return Program(Image(built))


@pytest.fixture
def unlearned(program: Program, tmp_path: Path) -> dict[str, Counts]:
    return program.run({}, tmp_path)


def test_unlearned_sites_call_as_before(unlearned: dict[str, Counts]) -> None:
    assert len(unlearned) > 40
    for name, counts in unlearned.items():
        assert counts.errors == 0
        assert counts.calls > 500
        assert counts.thunk >= counts.calls or name in STATICS


def test_learned_sites_call_directly_what_they_learned(
    program: Program, unlearned: dict[str, Counts], tmp_path: Path
) -> None:
    changes: dict[int, bytes] = {}
    for record in program.inline():
        target = program.target_of(record)
        changes |= compare(record, target) | direct(record, target)
    learned = program.run(changes, tmp_path)
    for name, counts in learned.items():
        assert counts.errors == 0
        # Every other call is for the target that was not learned.
        assert 2 * counts.thunk == unlearned[name].thunk


def test_a_branch_that_no_compare_leads_to_is_never_taken(
    program: Program, unlearned: dict[str, Counts], tmp_path: Path
) -> None:
    changes: dict[int, bytes] = {}
    for record in program.inline():
        changes |= direct(record, program.target_of(record))
    assert program.run(changes, tmp_path) == unlearned


def test_a_wrong_branch_would_be_noticed(program: Program, tmp_path: Path) -> None:
    changes: dict[int, bytes] = {}
    for record in program.inline():
        changes |= compare(record, program.target_of(record, 0))
        changes |= direct(record, program.target_of(record, 1))
    for name, counts in program.run(changes, tmp_path).items():
        assert (counts.errors > 0) == (name not in STATICS)


@pytest.mark.parametrize("through", ["trampoline", "sites"])
def test_static_calls_follow_their_trampoline_and_their_sites(
    program: Program, tmp_path: Path, through: str
) -> None:
    places = {f"key_{name}": program.image.functions[f"{name}_1"].start for name in STATICS}
    trampolines = {
        program.image.functions[f"__optp_tramp_{key}"].start: target
        for key, target in places.items()
    }
    changes = {}
    for record in program.image.records:
        if through == "trampoline" and record.kind == TRAMPOLINE:
            changes[record.site] = branch(record.site, 0xE9, trampolines[record.site])
        elif through == "sites" and record.kind in {STATIC_CALL, STATIC_JMP}:
            opcode = 0xE8 if record.kind == STATIC_CALL else 0xE9
            changes[record.site] = branch(record.site, opcode, trampolines[record.other])
    assert len(changes) == len(STATICS)
    assert all(counts.errors == 0 for counts in program.run(changes, tmp_path, 1).values())
    before = program.run({}, tmp_path, 1)
    assert {name for name, counts in before.items() if counts.errors} == set(STATICS)
