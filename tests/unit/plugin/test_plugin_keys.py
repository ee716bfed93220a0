"""A call's key: which register holds it, and what the compiler says of a wrong one."""

import pytest

from tests.unit.plugin.plugin_tools import NO_REGISTER, REGISTERS, CompileError, Compiler

INCLUDE = '#include "optpoline.h"\n'
SIX = "int a, long b, void *c, unsigned char d, int e, long f"


def key(register: str, shift: int, bits: int) -> tuple[int, int, int]:
    return REGISTERS.index(register), shift, bits


@pytest.mark.parametrize(
    ("argument", "register"), [*enumerate(("rdi", "rsi", "rdx", "rcx", "r8", "r9"), 1)]
)
@pytest.mark.parametrize("form", ["", " + 1"])
def test_each_argument_has_its_register(
    compiler: Compiler, argument: int, register: str, form: str
) -> None:
    image = compiler.compiled(
        f"{INCLUDE}struct ops {{ int (*fn)({SIX}) OPTPOLINE_KEY({argument}, 3, 4); }};\n"
        "int call(struct ops *ops, int x) { return ops->fn(x, 2, ops, 4, 5, 6)" + form + "; }\n"
    )
    (record,) = image.inline("call")
    assert record.key == key(register, 4, 3)
    assert record.register != record.key[0]


@pytest.mark.parametrize(
    ("function", "call", "expected"),
    [
        # The address of a struct that is returned in memory is the first argument.
        ("struct big (*fn)(int) OPTPOLINE_KEY(1, 6, 25)", "fn(1).a[x]", key("rsi", 25, 6)),
        ("struct two (*fn)(int) OPTPOLINE_KEY(1, 1, 0)", "fn(x).a", key("rdi", 0, 1)),
        ("int (*fn)(struct two, int) OPTPOLINE_KEY(2, 4, 0)", "fn(two, x) + 1", key("rdx", 0, 4)),
        ("int (*fn)(struct big, int) OPTPOLINE_KEY(2, 4, 0)", "fn(big, x) + 1", key("rdi", 0, 4)),
        ("int (*fn)(double, int) OPTPOLINE_KEY(2, 4, 0)", "fn(1.0, x) + 1", key("rdi", 0, 4)),
        ("int (*fn)(__int128, int) OPTPOLINE_KEY(2, 4, 0)", "fn(x, x) + 1", key("rdx", 0, 4)),
        ("int (*fn)(int, ...) OPTPOLINE_KEY(1, 4, 0)", "fn(x, 1.0, 2) + 1", key("rdi", 0, 4)),
        ("keyed *fn", "fn(x, 1) + 1", key("rsi", 30, 1)),
        ("keyed **fn", "fn[x](x, 1) + 1", key("rsi", 30, 1)),
        ("keyed *fn", "((int (*)(int, int))fn)(x, 1) + 1", (NO_REGISTER, 0, 0)),
        ("void *fn", "((keyed *)fn)(x, 1) + 1", key("rsi", 30, 1)),
        ("int (*fn)(int, int)", "((keyed *)fn)(x, 1) + 1", key("rsi", 30, 1)),
        ("int (*fn)(int, int)", "inlined(fn, x) + 1", key("rsi", 30, 1)),
        ("keyed *fn", "unkeyed(fn)(x, 1) + 1", (NO_REGISTER, 0, 0)),
        ("int (*fn)(int, int)", "fn(x, 1) + 1", (NO_REGISTER, 0, 0)),
    ],
)
@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_where_the_type_comes_from(
    compiler: Compiler, level: str, function: str, call: str, expected: tuple[int, int, int]
) -> None:
    image = compiler.compiled(
        INCLUDE + "struct two { long a, b; };\nstruct big { int a[20]; };\n"
        "extern struct two two;\nextern struct big big;\n"
        "typedef int keyed(int, int) OPTPOLINE_KEY(2, 1, 30);\n"
        "static inline __attribute__((always_inline)) int inlined(keyed *fn, int x)\n"
        "{ return fn(x, 2); }\n"
        "typedef int plain(int, int);\n"
        "static inline __attribute__((always_inline, unused)) plain *unkeyed(keyed *fn)\n"
        "{ return fn; }\n"
        f"int call({function}, int x);\n"
        f"int call({function}, int x) {{ return {call}; }}\n",
        level,
    )
    (record,) = image.inline("call")
    assert record.key == expected


@pytest.mark.parametrize(
    ("parameters", "arguments", "said"),
    [
        ("int a", "0, 4, 0", "of argument 0: only 1 to 6 are in registers"),
        ("int a", "7, 4, 0", "of argument 7: only 1 to 6 are in registers"),
        ("int a", "1, 0, 0", "of 0 bits: a key has 1 to 6"),
        ("int a", "1, 7, 0", "of 7 bits: a key has 1 to 6"),
        ("int a", "1, 4, 28", "of 4 bits from bit 28 on: it must end below bit 31"),
        ("int a", "1, 4, 0xfffffffffffffffe", "from bit 18446744073709551614 on"),
        ("int a", "1, -4, 0", "takes three constants: argument, bits and shift"),
        ("int a", "1, bits, 0", "takes three constants: argument, bits and shift"),
        ("int a", '1, "4", 0', "takes three constants: argument, bits and shift"),
        ("int a", "2, 4, 0", "of argument 2, which the prototype does not have"),
        ("int a, ...", "2, 4, 0", "of argument 2, which the prototype does not have"),
        ("void", "1, 4, 0", "of argument 1, which the prototype does not have"),
        ("", "1, 4, 0", "of argument 1, which the prototype does not have"),
        ("double a", "1, 4, 0", "which is no integer or pointer of up to 64 bits"),
        ("__int128 a", "1, 4, 0", "which is no integer or pointer of up to 64 bits"),
        ("struct late a", "1, 4, 0", "which is no integer or pointer of up to 64 bits"),
    ],
)
def test_a_wrong_key_is_one_error(
    compiler: Compiler, parameters: str, arguments: str, said: str
) -> None:
    text = (
        INCLUDE + "struct late;\nextern int bits;\n"
        f"struct ops {{ int (*fn)({parameters}) OPTPOLINE_KEY({arguments}); }};\n"
    )
    with pytest.raises(CompileError) as caught:
        compiler.text(text)
    (error,) = (line for line in str(caught.value).splitlines() if "error" in line)
    assert "'optpoline_key' " in error
    assert error.endswith(said) or said in error


def test_an_argument_on_the_stack_is_no_key(compiler: Compiler) -> None:
    text = (
        INCLUDE + "struct big { int a[20]; };\n"
        "struct ops { struct big (*fn)(int, int, int, int, int, int) OPTPOLINE_KEY(6, 4, 0); };\n"
        "int call(struct ops *ops) { return ops->fn(1, 2, 3, 4, 5, 6).a[1]; }\n"
    )
    with pytest.raises(CompileError, match="argument 6, which is not passed in a register") as said:
        compiler.text(text)
    assert str(said.value).count("error") == 1


def test_a_key_of_what_is_no_function_is_refused(compiler: Compiler) -> None:
    with pytest.raises(CompileError, match="'optpoline_key' attribute only applies to function"):
        compiler.text(INCLUDE + "int number OPTPOLINE_KEY(1, 4, 0);\n")
