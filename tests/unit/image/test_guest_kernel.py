"""What `make guest-kernel` does before and around the build of the kernel itself."""

import sys
from pathlib import Path

import pytest

from guest.image import kernel, packages
from guest.image.errors import BuildError
from guest.image.paths import GUEST
from guest.image.tools import follow

CHANGES = (GUEST / "image/kernel.config").read_text()

DEBIAN = """\
CONFIG_LOCALVERSION=""
CONFIG_VETH=m
CONFIG_XEN=y
CONFIG_XEN_PVH=y
# CONFIG_SLOB is not set
"""
WANTED = """\
# Why.
CONFIG_LOCALVERSION="-x"
# CONFIG_XEN is not set
"""


def test_configuration_has_no_modules_and_the_changes_instead_of_the_old_lines() -> None:
    assert kernel.configuration(DEBIAN, WANTED).splitlines() == [
        "# CONFIG_VETH is not set",
        "CONFIG_XEN_PVH=y",
        "# CONFIG_SLOB is not set",
        *WANTED.splitlines(),
    ]


def test_changes_that_kbuild_did_not_take_over_are_named() -> None:
    assert kernel.unmet(kernel.configuration(DEBIAN, WANTED), WANTED) == []
    assert kernel.unmet('CONFIG_LOCALVERSION="-x"\n', WANTED) == []
    assert kernel.unmet(DEBIAN, WANTED) == WANTED.splitlines()[1:]


def test_changes_name_options_of_the_cloud_kernel() -> None:
    config = packages.config(packages.provide("cloud")).read_text()
    known = kernel.options(config)
    # This one comes up where gcc's plugin headers are installed, which Debian builds without.
    assert kernel.options(CHANGES) - known == {"CONFIG_GCC_PLUGINS"}
    assert kernel.unmet(config, CHANGES), "the changes change nothing"


def test_a_kernel_that_was_not_built_is_no_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_BUILT", tmp_path / "built")
    with pytest.raises(BuildError, match="make guest-kernel"):
        kernel.load()


def follow_python(script: str, directory: Path) -> list[str]:
    lines: list[str] = []
    follow(
        (sys.executable, "-c", script),
        error=BuildError,
        what="count",
        cwd=directory,
        log=directory / "log",
        each=lines.append,
    )
    return lines


def test_a_long_command_is_followed_line_by_line(tmp_path: Path) -> None:
    assert follow_python("print(1)", tmp_path) == ["1\n"]
    assert follow_python("import sys; print(2, file=sys.stderr)", tmp_path) == ["2\n"]
    assert (tmp_path / "log").read_text() == "1\n2\n", "the log of the first run is lost"


def test_the_end_of_a_failing_command_is_shown(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"(?s)^cannot count: .*\n98\n99$") as failed:
        follow_python("print(*range(100), sep='\\n'); raise SystemExit(2)", tmp_path)
    assert "\n50\n" not in str(failed.value)


def test_a_warning_fails_now_and_when_the_build_goes_on(tmp_path: Path) -> None:
    warning = "vmlinux.o: warning: objtool: f+0x8: unreachable instruction"
    with pytest.raises(BuildError, match=r"^cannot count: vmlinux.o: warning: objtool: f\+0x8"):
        follow_python(f"print({warning!r})", tmp_path)
    with pytest.raises(BuildError, match="unreachable"):
        follow_python("print('done')", tmp_path)
