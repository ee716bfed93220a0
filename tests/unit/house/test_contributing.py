"""The drawings in CONTRIBUTING.md are true to the code: each station hands over to the next."""

import ast
import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.house import PACKAGE

_TEXT = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text()
_SECTION = re.compile(
    r"^### (?P<title>[^\n]+)\n\n```\n(?P<drawing>.+?)^```$", re.MULTILINE | re.DOTALL
)
_STATION = re.compile(
    r"^(?P<file>[\w/]+\.py): (?P<name>[\w.]+)"
    r"|^ +\|  (?P<other_file>[\w/]+\.py)\b(?:: (?P<carrier>\w+\.\w+))?",
    re.MULTILINE,
)
_STATIONS_MAX = 6

DRAWINGS = {
    found["title"]: found["drawing"]
    for found in _SECTION.finditer(_TEXT)
    if _STATION.search(found["drawing"])
}


class Station(NamedTuple):
    """A function of the daemon; the name of a method begins with its class."""

    file: str
    name: str

    def tree(self) -> ast.Module:
        path = PACKAGE / self.file
        return ast.parse(path.read_text() if path.is_file() else "")

    def exists(self) -> bool:
        scope: ast.AST | None = self.tree()
        for part in self.name.split("."):
            scope = next((node for node in _definitions(scope) if node.name == part), None)
        return isinstance(scope, ast.FunctionDef)

    @property
    def function(self) -> str:
        """The name without its class."""
        return self.name.rpartition(".")[2]

    def reaches(self) -> set[str]:
        """Return what the function calls, also through other functions of its file."""
        calls: dict[str, set[str]] = {}
        for node in ast.walk(self.tree()):
            if isinstance(node, ast.FunctionDef):
                calls.setdefault(node.name, set()).update(_called(node))
        reached: set[str] = set()
        ahead = {self.function}
        while ahead:
            name = ahead.pop()
            reached.add(name)
            ahead |= calls.get(name, set()) - reached
        return reached


def _definitions(scope: ast.AST | None) -> list[ast.FunctionDef | ast.ClassDef]:
    body = getattr(scope, "body", [])
    return [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def _called(function: ast.AST) -> set[str]:
    """Return the names of the functions and methods that a function calls."""
    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    return {call.id for call in calls if isinstance(call, ast.Name)} | {
        call.attr for call in calls if isinstance(call, ast.Attribute)
    }


def _stations(drawing: str) -> list[Station]:
    found = _STATION.finditer(drawing)
    return [Station(place["file"], place["name"]) for place in found if place["file"]]


def _handed_over_elsewhere(drawing: str, before: Station, after: Station) -> bool:
    """Return whether a line between the two names what hands over, such as a queue."""
    between = drawing.partition(f"{before.file}: {before.name}")[2]
    between = between.partition(f"\n{after.file}: {after.name}")[0]
    carriers = [found for found in _STATION.finditer(between) if found["other_file"]]
    for found in carriers:
        assert (PACKAGE / found["other_file"]).is_file()
        if found["carrier"]:
            carrier = Station(found["other_file"], found["carrier"])
            assert carrier.exists(), carrier
            assert {before.function, after.function} <= carrier.reaches(), carrier
    return bool(carriers)


def test_there_are_two_drawings() -> None:
    assert len(DRAWINGS) == 2


@pytest.mark.parametrize("title", DRAWINGS)
def test_a_drawing_has_at_most_six_stations(title: str) -> None:
    assert 2 < len(_stations(DRAWINGS[title])) <= _STATIONS_MAX


@pytest.mark.parametrize("title", DRAWINGS)
def test_each_station_exists(title: str) -> None:
    assert [station for station in _stations(DRAWINGS[title]) if not station.exists()] == []


@pytest.mark.parametrize("title", DRAWINGS)
def test_each_station_hands_over_to_the_next(title: str) -> None:
    """One of the two calls the other, or a line between them says what carries the value."""
    drawing = DRAWINGS[title]
    for before, after in pairwise(_stations(drawing)):
        called = after.function in before.reaches() or before.function in after.reaches()
        assert called or _handed_over_elsewhere(drawing, before, after), (before, after)
