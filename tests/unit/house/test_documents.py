"""What the documents name exists: files, folders, tests, and the arrows between the rooms."""

import re
from pathlib import Path

import pytest

from tests.house import README, draw, picture, read_house

ROOT = Path(__file__).parents[3]
_SKIPPED = {"build", "node_modules", ".venv", ".git"}
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.md")
    if not _SKIPPED.intersection(path.relative_to(ROOT).parts)
)
_ROOTS = (".", "daemon/optpolined", "tests", "tests/unit", "guest", "configs")
"""A document may name a path from one of these, or from its own folder."""

_PATH = re.compile(
    r"(?<![\w./@*:~-])(?P<path>[a-z][\w-]*(?:/[\w.@-]+)*/[\w@-]+\.(?:py|c|h|S|cc|md|toml|yml|mk|trace|service))"
    r"(?:::(?P<test>\w+))?"
)


def _named(document: Path) -> set[tuple[str, str]]:
    return {(found["path"], found["test"] or "") for found in _PATH.finditer(document.read_text())}


def _find(document: Path, path: str) -> Path | None:
    folders = [document.parent, *(ROOT / root for root in _ROOTS)]
    return next((folder / path for folder in folders if (folder / path).is_file()), None)


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_path_and_test_that_a_document_names_exists(document: Path) -> None:
    missing = []
    for path, test in sorted(_named(ROOT / document)):
        if path.startswith(("build/", "etc/", "run/")):
            continue  # made by a command, or on the operator's host
        found = _find(ROOT / document, path)
        if found is None or (test and f"def {test}(" not in found.read_text()):
            missing.append(f"{path}::{test}" if test else path)
    assert missing == []


@pytest.mark.parametrize("name", ["README.md", "tests/README.md"])
def test_the_paths_of_a_document_are_found(name: str) -> None:
    assert len(_named(ROOT / name)) > 3


def test_readme_shows_the_rooms_and_the_arrows_between_them() -> None:
    shown = picture(README.read_text())
    drawn = f"{draw(read_house(), numbers=False)}\n"
    assert shown == drawn, "run `.venv/bin/python -m tests.house --readme`"
