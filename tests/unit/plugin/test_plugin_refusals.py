"""What the plugin does not do, it refuses in one line."""

import re
import shutil
from pathlib import Path

import pytest

from tests.unit.plugin.plugin_tools import PLUGIN, CompileError, Compiler, run

TEXT = "int call(int (*fn)(void)) { return fn() + 1; }\n"


def error_of(caught: pytest.ExceptionInfo[CompileError]) -> str:
    (error,) = (line for line in str(caught.value).splitlines() if "error:" in line)
    return error.split("error: ", 1)[1]


def test_another_gcc(plugin_folder: Path, tmp_path: Path) -> None:
    built = shutil.copytree(plugin_folder, tmp_path / "built")
    (built / "optpoline.o").unlink()
    headers = Path(run("gcc", "-print-file-name=plugin").strip()) / "include"
    version = (headers / "plugin-version.h").read_text()
    changed = re.sub(r'basever\[\] = "[^"]*"', 'basever[] = "11.1.0"', version)
    assert changed != version
    (tmp_path / "plugin-version.h").write_text(changed)
    run("make", "-C", PLUGIN, f"O={built}", f"CPPFLAGS=-I{tmp_path}")
    with pytest.raises(CompileError) as caught:
        Compiler(built / "optpoline.so", tmp_path).text(TEXT)
    here = run("gcc", "-dumpfullversion").strip()
    assert error_of(caught) == (
        f"optpoline: built for gcc 11.1.0, which is not this gcc {here}: build the plugin again"
    )


def test_unknown_arguments(compiler: Compiler) -> None:
    with pytest.raises(CompileError) as caught:
        compiler.text(TEXT, plugin=["opt-out"])
    assert error_of(caught) == (
        "optpoline: unknown argument 'opt-out': there are 'off' and 'opt-in'"
    )


def test_link_time_optimisation(compiler: Compiler) -> None:
    with pytest.raises(CompileError) as caught:
        compiler.text(TEXT, "-O2", "-flto")
    assert error_of(caught) == "optpoline: '-flto' is not supported"
