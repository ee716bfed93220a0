"""guest/module/compat.h is the only place with conditions on a kernel's version or features."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.image.paths import GUEST

MODULE = GUEST / "module"
COMPAT = "compat.h"

_DIRECTIVE = re.compile(r"^\s*#\s*(?:if|ifdef|ifndef|elif|elifdef|elifndef)\b(?P<condition>.*)")
_KBUILD_CONDITION = re.compile(r"^\s*(?:else\s+)?(?:ifdef|ifndef|ifeq|ifneq)\b|\$\(CONFIG_")
_KERNEL_TEST = re.compile(
    r"\bIS_(?:ENABLED|BUILTIN|MODULE|REACHABLE)\b|\bKERNEL_VERSION\b|\bLINUX_VERSION_CODE\b"
    r"|\b__has_include\b|\bCONFIG_[A-Z0-9_]+"
)
_OWN = re.compile(r"OPTPOLINE_\w+|OPTP_ARENA_MIB|__ASSEMBLY__|__KERNEL__|defined|[\d\s<>=!|&()]")
"""Include guards, our own setting, and which language or world includes a header."""


def conditions(name: str, text: str) -> Iterator[str]:
    """Yield each line of a file that depends on the kernel it is built for."""
    kbuild = name in {"Kbuild", "Makefile"}
    code = text if kbuild else _without_comments(text)
    for line in code.splitlines():
        if kbuild:
            conditional = _KBUILD_CONDITION.search(line) is not None
        elif directive := _DIRECTIVE.match(line):
            conditional = _OWN.sub("", directive["condition"]) != ""
        else:
            conditional = _KERNEL_TEST.search(line) is not None
        if conditional:
            yield line.strip()


def _without_comments(text: str) -> str:
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', " ", text, flags=re.DOTALL)


def module_files() -> list[Path]:
    names = ("Kbuild", "Makefile", "*.c", "*.h", "*.S")
    return sorted(path for name in names for path in MODULE.glob(name))


@pytest.mark.parametrize("path", module_files(), ids=lambda path: path.name)
def test_only_compat_h_depends_on_the_kernel(path: Path) -> None:
    found = list(conditions(path.name, path.read_text()))
    if path.name == COMPAT:
        assert found
    else:
        assert found == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("main.c", "#ifdef CONFIG_X86_KERNEL_IBT"),
        ("main.c", "#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)"),
        ("main.c", "#  if __has_include(<linux/objtool.h>)"),
        ("arena.S", "#ifdef ORC_TYPE_CALL"),
        ("stubs.S", "#ifndef ANNOTATE_NOENDBR"),
        ("int3.c", "\tif (IS_ENABLED(CONFIG_KPROBES))"),
        ("Kbuild", "ifdef CONFIG_X86_KERNEL_IBT"),
        ("Kbuild", "optpoline-$(CONFIG_KPROBES) += probes.o"),
    ],
)
def test_a_condition_elsewhere_is_seen(name: str, line: str) -> None:
    assert list(conditions(name, f"{line}\n")) == [line.strip()]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("optpoline.h", "#ifndef OPTPOLINE_H\n#ifndef __ASSEMBLY__\n#ifdef __KERNEL__\n"),
        ("arena.S", "#if OPTP_ARENA_MIB < 1 || OPTP_ARENA_MIB > 64\n"),
        ("main.c", "/*\n * CONFIG_RETPOLINE and\n#ifdef in a comment\n */\n"),
        ("main.c", 'pr_err("needs CONFIG_SMP\\n");\n'),
        ("Kbuild", "ccflags-y := -Werror\n"),
    ],
)
def test_what_is_no_condition_on_the_kernel_is_allowed(name: str, text: str) -> None:
    assert list(conditions(name, text)) == []
