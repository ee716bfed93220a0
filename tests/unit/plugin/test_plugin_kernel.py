"""The shapes as a kernel module, built by the kernel's own makefiles and judged by objtool."""

import os
import shutil
import struct

import pytest

from guest.image import packages
from tests.unit.plugin.plugin_tools import (
    INCLUDE,
    INLINE_CALL,
    INLINE_JMP,
    SHAPES,
    STATIC_CALL,
    STATIC_JMP,
    TRAMPOLINE,
    Compiler,
    Image,
    branch,
    inline_code,
    run,
    thunk_branches,
)

# struct orc_entry (arch/x86/include/asm/orc_types.h of Linux 6.1): two s16, then sp_reg in the
# low four bits.  ORC_REG_UNDEFINED, 0, is where the unwinder knows nothing.
ORC_ENTRY = struct.Struct("<hhH")


@pytest.fixture(scope="module")
def module(compiler: Compiler, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Image]:
    """What the build printed, and the module, linked against our thunks."""
    sources = shutil.copytree(SHAPES, tmp_path_factory.mktemp("module") / "shapes")
    printed = run(
        *("make", f"-j{os.cpu_count()}", "-C", packages.provide("cloud").headers, f"M={sources}"),
        *(f"INCLUDE={INCLUDE}", f"KCFLAGS=-fplugin={compiler.plugin}", "modules"),
    )
    return printed, compiler.image(sources / "shapes_module.ko")


def test_the_build_is_silent(module: tuple[str, Image]) -> None:
    printed, image = module
    assert "warning" not in printed.lower()
    assert ".orc_unwind_ip" in image.sections, "objtool did not run"


def test_every_site_has_the_bytes_of_the_layout(module: tuple[str, Image]) -> None:
    _, image = module
    branches: set[int] = set()
    kinds = [record.kind for record in image.records]
    for record in image.records:
        if record.kind in {INLINE_CALL, INLINE_JMP}:
            code, where = inline_code(image, record)
            assert image.read(record.site, len(code)) == code
            branches |= where
    assert kinds.count(INLINE_CALL) > 35
    assert kinds.count(INLINE_JMP) >= 5
    assert [kinds.count(kind) for kind in (STATIC_CALL, STATIC_JMP, TRAMPOLINE)] == [2, 1, 3]
    # What does not come back is no site.
    others = {"shapes_unreachable", "shapes_bug"}
    rest = thunk_branches(image) - branches
    assert {image.function_of(at) for at in rest} == others
    assert len(rest) == len(others)


def test_the_unwinder_knows_every_instruction_of_a_site(module: tuple[str, Image]) -> None:
    _, image = module
    table = image.sections[".orc_unwind_ip"]
    entries = image.sections[".orc_unwind"].data
    starts = [
        table.address + 4 * i + offset
        for i, (offset,) in enumerate(struct.iter_unpack("<i", table.data))
    ]
    known = [bool(types & 0xF) for _, _, types in ORC_ENTRY.iter_unpack(entries)]
    ordered = sorted(zip(starts, known, strict=True))
    for record in image.records:
        inline = record.kind in {INLINE_CALL, INLINE_JMP}
        size = len(inline_code(image, record)[0]) if inline else 5
        for at in range(record.site, record.site + size):
            assert [good for start, good in ordered if start <= at][-1]


def test_a_key_without_a_target_is_the_kernels_return(module: tuple[str, Image]) -> None:
    _, image = module
    place = image.functions["__optp_tramp_key_static_null"].start
    thunk = image.functions["__x86_return_thunk"].start
    assert image.read(place, 8) == branch(place, 0xE9, thunk) + b"\xcc" * 3
