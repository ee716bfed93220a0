"""Which calls become sites, and every byte of what becomes of them."""

from typing import cast

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.kernel.paging import AddressSpace
from optpolined.kernel.sites.declarations import read_declarations
from tests.unit.plugin.plugin_tools import (
    INCLUDE,
    INLINE_CALL,
    INLINE_JMP,
    KERNEL_FLAGS,
    NO_REGISTER,
    REGISTERS,
    SHAPES,
    STATIC_CALL,
    Compiler,
    Image,
    Record,
    inline_code,
    run,
    thunk_branches,
)

CALL = "int call(int (*fn)(int)) { return fn(1) + 1; }\n"
TAIL = "int tail(int (*fn)(int)) { return fn(1); }\n"

SITES = {
    **dict.fromkeys(("pair", "big", "by_value", "variadic", "nothing", "in_asm"), "call"),
    **dict.fromkeys(("plain", "memory", "returned", "nine", "loop", "list"), "call"),
    **dict.fromkeys(("live", "frame", "wide", "keyed"), "call"),
    **dict.fromkeys((name for name in REGISTERS if name != "rsp"), "call"),
    **dict.fromkeys(("tail", "tail_memory", "tail_six", "tail_nothing_void"), "tail"),
}
"""The shapes that have one site, and its form."""


@pytest.fixture(scope="module", params=["-O2", "-Os"])
def shapes(request: pytest.FixtureRequest, compiler: Compiler) -> Image:
    flags = (request.param, *KERNEL_FLAGS)
    return compiler.image(compiler.file(SHAPES / "shapes.c", *flags))


@pytest.mark.parametrize("shape", SITES)
def test_every_shape_of_call_is_a_site(shapes: Image, shape: str) -> None:
    (record,) = shapes.inline(f"shape_{shape}")
    assert record.kind == {"call": INLINE_CALL, "tail": INLINE_JMP}[SITES[shape]]
    assert record.other == 0
    if shape in REGISTERS:
        assert REGISTERS[record.register] == shape
    if shape != "keyed":
        assert record.key == (NO_REGISTER, 0, 0)


@pytest.mark.parametrize(
    ("shape", "most", "kinds"),
    [
        ("nested", 3, {INLINE_CALL}),
        ("twice", 2, {INLINE_CALL}),
        ("branches", 3, {INLINE_CALL}),
        ("in_switch", 3, {INLINE_CALL}),
        ("tail_branches", 2, {INLINE_JMP}),
    ],
)
def test_functions_with_several_calls(
    shapes: Image, shape: str, most: int, kinds: set[int]
) -> None:
    # Optimised, calls that are alike may become one.
    records = shapes.inline(f"shape_{shape}")
    assert 1 <= len(records) <= most
    assert {record.kind for record in records} == kinds


def test_sites_have_the_bytes_of_the_layout_and_nothing_else_calls_a_thunk(shapes: Image) -> None:
    branches: set[int] = set()
    inline = [record for record in shapes.records if record.kind in {INLINE_CALL, INLINE_JMP}]
    for record in inline:
        code, where = inline_code(shapes, record)
        assert shapes.read(record.site, len(code)) == code
        assert record.site % 8 == 0
        branches |= where
    assert len(inline) > len(SITES)
    assert thunk_branches(shapes) == branches


def test_the_section_is_constant_data(shapes: Image) -> None:
    section = shapes.sections[".optpoline_sites"]
    assert (section.flags, section.alignment) == (2, 16)  # SHF_ALLOC alone


@pytest.mark.parametrize("register", ["rax", "r8", "r15"])
def test_without_the_cs_prefix(compiler: Compiler, register: str) -> None:
    text = (
        f'int call(int (*fn)(void)) {{ register int (*to)(void) asm("{register}") = fn;'
        ' asm volatile("" : "+r" (to)); return to() + 1; }\n'
    )
    flags = [flag for flag in KERNEL_FLAGS if flag != "-mindirect-branch-cs-prefix"]
    source = compiler.folder / "no_prefix.c"
    source.write_text(text)
    image = compiler.image(compiler.file(source, "-O2", *flags))
    (record,) = image.inline("call")
    code, where = inline_code(image, record, prefix=False)
    assert image.read(record.site, len(code)) == code
    assert thunk_branches(image) == where


@pytest.mark.parametrize("level", ["-O0", "-O1", "-O3", "-O2 -g", "-O2 -pg -mfentry"])
def test_other_flags_change_no_site(compiler: Compiler, level: str) -> None:
    image = compiler.compiled(CALL, *level.split())
    (record,) = image.inline("call")
    code, where = inline_code(image, record)
    assert image.read(record.site, len(code)) == code
    assert thunk_branches(image) == where


def test_objects_linked_into_one_keep_a_run_each(compiler: Compiler) -> None:
    objects = [
        compiler.text(CALL + TAIL),
        compiler.text("int nothing(int a) { return a; }\n"),
        compiler.text("int more(int (*fn)(int)) { return fn(2) + 1; }\n"),
    ]
    linked = compiler.folder / "several.o"
    run("ld", "-r", "-o", linked, *objects)
    image = compiler.image(linked)
    assert [len(records) for records in image.runs()] == [2, 1]
    assert [image.function_of(record.site) for record in image.records] == ["call", "tail", "more"]
    for record in image.records:
        code, _ = inline_code(image, record)
        assert image.read(record.site, len(code)) == code


@pytest.mark.parametrize(
    "text",
    [
        "int direct(int);\nint calls(int a) { return direct(a) + 1; }\n",
        "void gone(void (*fn)(void) __attribute__((noreturn))) { fn(); }\n",
        'void gone(void (*fn)(void)) { fn(); asm volatile(""); __builtin_unreachable(); }\n',
        '__attribute__((section(".init.text"))) ' + CALL,
        '__attribute__((section(".exit.text"))) ' + CALL,
        '__attribute__((section(".meminit.text"))) ' + TAIL,
        '__attribute__((indirect_branch("keep"))) ' + CALL,
        '#include "optpoline.h"\n__no_optpoline ' + CALL,
        '#include "optpoline.h"\n__no_optpoline ' + TAIL,
        '#include "optpoline.h"\n__no_optpoline int call(int (*fn)(int));\n' + CALL,
    ],
)
@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_calls_that_stay_as_they_are(compiler: Compiler, text: str, level: str) -> None:
    image = compiler.compiled(text, level)
    assert ".optpoline_sites" not in image.sections
    plain = compiler.compiled(text, level, plugin=None)
    assert image.sections[".text"].data == plain.sections[".text"].data


@pytest.mark.parametrize("flag", ["-mindirect-branch=keep", "-mindirect-branch=thunk-inline"])
def test_without_extern_thunks_there_are_no_sites(compiler: Compiler, flag: str) -> None:
    source = compiler.folder / "keep.c"
    source.write_text(CALL)
    image = compiler.image(compiler.file(source, "-O2", "-fno-pie", flag))
    assert image.runs() == []


def test_32_bit_code_has_no_sites(compiler: Compiler) -> None:
    source, built = compiler.folder / "narrow.c", compiler.folder / "narrow.s"
    source.write_text(CALL)
    plugin = f"-fplugin={compiler.plugin}"
    run("gcc", "-m32", "-O2", *KERNEL_FLAGS[:2], plugin, "-S", source, "-o", built)
    assert "__x86_indirect_thunk_eax" in built.read_text()
    assert "optpoline" not in built.read_text()


def test_a_file_can_be_left_out(compiler: Compiler) -> None:
    text = '#include "optpoline.h"\n' + CALL + "__no_optpoline " + TAIL
    assert compiler.compiled(text, plugin=["off"]).runs() == []


def test_opt_in_takes_marked_functions_only(compiler: Compiler) -> None:
    text = (
        '#include "optpoline_static_call.h"\n'
        "OPTPOLINE_STATIC_CALL_DECLARE(key, void(void));\n"
        "int call(int (*fn)(int)) { return fn(1) + 1; }\n"
        "__optpoline int wanted(int (*fn)(int)) { return fn(1) + 1; }\n"
        "int constant(void) { optpoline_static_call(key)(); return 0; }\n"
    )
    image = compiler.compiled(text, plugin=["opt-in"])
    assert {(image.function_of(record.site), record.kind) for record in image.records} == {
        ("wanted", INLINE_CALL),
        ("constant", STATIC_CALL),
    }


@pytest.mark.parametrize(
    ("attribute", "arguments", "sites"),
    [("__no_optpoline", [], {"outer"}), ("__optpoline", ["opt-in"], {"inner"})],
)
def test_attributes_hold_for_exactly_their_function(
    compiler: Compiler, attribute: str, arguments: list[str], sites: set[str]
) -> None:
    text = (
        '#include "optpoline.h"\n'
        f"static inline {attribute} int inner(int (*fn)(int)) {{ return fn(1) + 1; }}\n"
        "int outer(int (*fn)(int)) { return inner(fn) + fn(2); }\n"
    )
    image = compiler.compiled(text, plugin=arguments)
    assert {image.function_of(record.site) for record in image.records} == sites


def test_the_macros_are_empty_without_the_plugin(compiler: Compiler) -> None:
    text = (
        '#include "optpoline.h"\n'
        "typedef int keyed(int) OPTPOLINE_KEY(1, 4, 0);\n"
        "__optpoline int call(keyed *fn) { return fn(1) + 1; }\n"
        "__no_optpoline int tail(keyed *fn) { return fn(1); }\n"
    )
    assert compiler.compiled(text, plugin=None).runs() == []


class LinkedMemory:
    """What of a guest's address space the daemon's reader of records uses."""

    def __init__(self, image: Image) -> None:
        self.read = image.read


def test_the_daemon_reads_the_same_records(shapes: Image) -> None:
    runs = [GuestVirtual(address) for address, *_ in shapes.run_symbols]
    declared = read_declarations(cast("AddressSpace", LinkedMemory(shapes)), runs)
    assert not declared.refused
    assert [
        Record(
            record.site,
            record.other,
            record.kind,
            NO_REGISTER if record.register is None else record.register,
            (record.key.register, record.key.shift, record.key.bits)
            if record.key
            else (NO_REGISTER, 0, 0),
        )
        for record in declared.records
    ] == shapes.records


def test_the_header_is_c_and_says_what_the_tests_know(compiler: Compiler) -> None:
    text = (
        '#include "optpoline_sites.h"\n'
        '_Static_assert(sizeof(struct optp_sites_header) == 16, "");\n'
        '_Static_assert(sizeof(struct optp_sites_record) == 16, "");\n'
        '_Static_assert(__builtin_offsetof(struct optp_sites_record, key_bits) == 12, "");\n'
        f'_Static_assert(OPTP_SITES_STATIC_CALL == {STATIC_CALL}, "");\n'
        f'_Static_assert(OPTP_SITES_NO_REG == {NO_REGISTER}, "");\n'
    )
    assert compiler.text(text).exists()
    assert (INCLUDE / "optpoline_sites.h").read_text().isascii()
