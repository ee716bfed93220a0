"""The plugin is built once, by its own Makefile."""

from pathlib import Path

import pytest

from tests.unit.plugin.plugin_tools import PLUGIN, Compiler, run


@pytest.fixture(scope="session")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make O=`` filled."""
    folder = tmp_path_factory.mktemp("plugin")
    run("make", "-C", PLUGIN, f"O={folder}")
    return folder


@pytest.fixture(scope="session")
def compiler(plugin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    return Compiler(plugin_folder / "optpoline.so", tmp_path_factory.mktemp("compiled"))
