"""What the documents name exists: files, folders, tests, and the arrows between the rooms."""

import ast
import re
from pathlib import Path

import pytest

from tests.house import README, draw, picture, read_house

ROOT = Path(__file__).parents[3]
_SKIPPED = {"build", ".venv", ".git"}
FILES = [
    path
    for path in ROOT.rglob("*")
    if path.is_file() and not _SKIPPED.intersection(path.relative_to(ROOT).parts)
]
DOCUMENTS = sorted(path.relative_to(ROOT) for path in FILES if path.suffix == ".md")
_ROOTS = (".", "daemon", "daemon/optpolined", "tests", "tests/unit", "guest", "configs")
"""A document may name a path from one of these, or from its own folder."""

_FILE = re.compile(
    r"(?<![\w./@*:~-])(?P<path>(?:[a-z][\w@-]*/)*[\w@-]+\.(?:py|[chS]|cc|md|toml|yml|mk|trace))\b"
    r"(?:::(?P<test>\w+))?"
)
_FOLDER = re.compile(
    r"(?<![\w./*:~-])(?:unit|tests|configs|daemon|patching|kernel)/[\w/-]+(?![\w./*])"
)
_ELSEWHERE = ("build/", "etc/", "run/")
"""What commands make, and what is on the operator's host."""
_NOT_OURS = {"NAME.toml", "optpolined.toml", "prometheus.yml", "vm1.trace"}
"""Files of the operator, and a man page."""


def _missing_files(document: Path) -> set[str]:
    missing = set()
    for found in _FILE.finditer((ROOT / document).read_text()):
        path, test = found["path"], found["test"]
        if path.startswith(_ELSEWHERE) or path in _NOT_OURS:
            continue
        file = _find(document, path)
        if file is None or (test and f"def {test}(" not in file.read_text()):
            missing.add(found[0])
    return missing


def _missing_folders(document: Path) -> set[str]:
    named = {found.strip("/") for found in _FOLDER.findall((ROOT / document).read_text())}
    folders = [ROOT / root for root in _ROOTS]
    return {name for name in named if not any((folder / name).is_dir() for folder in folders)}


def _find(document: Path, path: str) -> Path | None:
    """Return the file; a name without a folder may be that of any file."""
    if "/" not in path:
        return next((file for file in FILES if file.name == path), None)
    folders = [(ROOT / document).parent, *(ROOT / root for root in _ROOTS)]
    return next((folder / path for folder in folders if (folder / path).is_file()), None)


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_file_folder_and_test_that_a_document_names_exists(document: Path) -> None:
    assert _missing_files(document) | _missing_folders(document) == set()


@pytest.mark.parametrize(
    "text", ["`lab/no_such.py`", "no_such.py", "house/test_house.py::test_no_such", "unit/no_such"]
)
def test_what_does_not_exist_is_found(text: str, tmp_path: Path) -> None:
    document = tmp_path / "made_up.md"
    document.write_text(f"See {text}, and tests/README.md and unit/house.\n")
    assert _missing_files(document) | _missing_folders(document) == {text.strip("`")}


@pytest.mark.parametrize("folder", ["daemon", "guest", "tests", "configs"])
def test_every_file_that_the_docstring_of_a_module_names_exists(folder: str) -> None:
    missing = []
    for module in (path for path in FILES if path.suffix == ".py" and folder in path.parts):
        docstring = ast.get_docstring(ast.parse(module.read_text())) or ""
        named = {found["path"] for found in _FILE.finditer(docstring)}
        python = sorted(name for name in named if name.endswith(".py"))
        missing += [f"{module.name}: {name}" for name in python if not _find(module, name)]
    assert missing == []


def test_readme_shows_the_rooms_and_the_arrows_between_them() -> None:
    shown = picture(README.read_text())
    drawn = f"{draw(read_house(), numbers=False)}\n"
    assert shown == drawn, "run `.venv/bin/python -m tests.house --readme`"
