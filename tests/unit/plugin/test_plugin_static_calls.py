"""Static calls: what the macros make, what the plugin logs."""

import pytest

from tests.unit.plugin.plugin_tools import (
    NO_REGISTER,
    STATIC_CALL,
    STATIC_JMP,
    TRAMPOLINE,
    CompileError,
    Compiler,
    Image,
    Record,
    branch,
)

INCLUDE = '#include "optpoline_static_call.h"\n'
TARGET = "static int target(int a) { return a * 3; }\n"
USERS = (
    "int call(int a) { return optpoline_static_call(key)(a) + 1; }\n"
    "int tail(int a) { return optpoline_static_call(key)(a); }\n"
)
DEFINED = INCLUDE + TARGET + "OPTPOLINE_STATIC_CALL_DEFINE(key, target);\n" + USERS

NOT_LOGGED = (
    "__no_optpoline int outside(int a) { return optpoline_static_call(key)(a) + 1; }\n"
    '__attribute__((section(".init.text"))) int early(int a)\n'
    "{ return optpoline_static_call(key)(a) + 2; }\n"
)


def of_kind(image: Image, kind: int) -> list[Record]:
    return [record for record in image.records if record.kind == kind]


def check_logged(image: Image, *, calls: set[str], tails: set[str], key: str = "key") -> None:
    trampoline = image.functions[f"__optp_tramp_{key}"]
    for kind, opcode, users in ((STATIC_CALL, 0xE8, calls), (STATIC_JMP, 0xE9, tails)):
        records = of_kind(image, kind)
        assert {image.function_of(record.site) for record in records} == users
        assert len(records) == len(users)
        for record in records:
            assert record.other == trampoline.start
            assert (record.register, record.key) == (NO_REGISTER, (NO_REGISTER, 0, 0))
            assert image.read(record.site, 5) == branch(record.site, opcode, trampoline.start)


@pytest.mark.parametrize("level", ["-O2", "-Os"])
def test_calls_and_tail_calls_are_logged(compiler: Compiler, level: str) -> None:
    image = compiler.compiled(DEFINED + NOT_LOGGED, level)
    check_logged(image, calls={"call"}, tails={"tail"})


def test_the_trampoline_jumps_to_the_first_target(compiler: Compiler) -> None:
    image = compiler.compiled(DEFINED)
    place = image.functions["__optp_tramp_key"]
    assert len(place) == 8
    assert place.start % 8 == 0
    target = image.functions["target"].start
    assert image.read(place.start, 8) == branch(place.start, 0xE9, target) + b"\xcc" * 3
    (record,) = of_kind(image, TRAMPOLINE)
    assert (record.site, record.other, record.register) == (place.start, 0, NO_REGISTER)
    assert record.key == (NO_REGISTER, 0, 0)


@pytest.mark.parametrize("config", ["CONFIG_RETHUNK", "CONFIG_MITIGATION_RETHUNK", "CONFIG_NONE"])
def test_a_key_without_a_target_returns(compiler: Compiler, config: str) -> None:
    text = (
        f"#define {config} 1\n" + INCLUDE + "OPTPOLINE_STATIC_CALL_DEFINE_NULL(key, void(int));\n"
        "int call(int a) { optpoline_static_call(key)(a); return a; }\n"
        "void tail(int a) { optpoline_static_call(key)(a); }\n"
    )
    image = compiler.compiled(text)
    check_logged(image, calls={"call"}, tails={"tail"})
    place = image.functions["__optp_tramp_key"].start
    thunk = image.functions["__x86_return_thunk"].start
    code = b"\xc3" + b"\xcc" * 4 if "NONE" in config else branch(place, 0xE9, thunk)
    assert image.read(place, 8) == code + b"\xcc" * 3
    (record,) = of_kind(image, TRAMPOLINE)
    assert record.site == place


def test_the_definition_may_stand_in_another_file(compiler: Compiler) -> None:
    user = compiler.text(INCLUDE + "OPTPOLINE_STATIC_CALL_DECLARE(key, int(int));\n" + USERS)
    owner = compiler.text(
        INCLUDE + "int target(int a);\nOPTPOLINE_STATIC_CALL_DECLARE(key, int(int));\n"
        "OPTPOLINE_STATIC_CALL_DEFINE(key, target);\n"
    )
    image = compiler.image(user, owner)
    check_logged(image, calls={"call"}, tails={"tail"})
    assert [[record.kind for record in run] for run in image.runs()] == [
        [STATIC_CALL, STATIC_JMP],
        [TRAMPOLINE],
    ]


def test_several_keys(compiler: Compiler) -> None:
    image = compiler.compiled(
        INCLUDE + TARGET + "OPTPOLINE_STATIC_CALL_DEFINE(first, target);\n"
        "OPTPOLINE_STATIC_CALL_DEFINE_NULL(second, void(void));\n"
        "int call(int a) { optpoline_static_call(second)();"
        " return optpoline_static_call(first)(a) + optpoline_static_call(first)(a + 1); }\n"
    )
    first, second = (image.functions[f"__optp_tramp_{key}"].start for key in ("first", "second"))
    assert sorted(record.site for record in of_kind(image, TRAMPOLINE)) == sorted((first, second))
    assert sorted(record.other for record in of_kind(image, STATIC_CALL)) == sorted(
        (first, first, second)
    )


@pytest.mark.parametrize("plugin", [None, ["off"]])
def test_without_the_plugin_calls_go_through_the_trampoline(
    compiler: Compiler, plugin: list[str] | None
) -> None:
    image = compiler.compiled(DEFINED, plugin=plugin)
    assert image.runs() == []
    place = image.functions["__optp_tramp_key"].start
    target = image.functions["target"].start
    assert image.read(place, 5) == branch(place, 0xE9, target)
    call, tail = image.functions["call"], image.functions["tail"]
    assert any(image.read(at, 5) == branch(at, 0xE8, place) for at in call)
    assert any(image.read(at, 5) == branch(at, 0xE9, place) for at in tail)


@pytest.mark.parametrize("declared", ["void(int)", "int(long)"])
def test_the_types_of_key_and_target_must_agree(compiler: Compiler, declared: str) -> None:
    text = INCLUDE + TARGET + f"OPTPOLINE_STATIC_CALL_DECLARE(key, {declared});\n"
    with pytest.raises(CompileError, match="conflicting types for '__optp_tramp_key'"):
        compiler.text(text + "OPTPOLINE_STATIC_CALL_DEFINE(key, target);\n")
