"""Draw the rooms of the daemon and the imports between them: ``make house``.

    python -m tests.house             the rooms, with their files and lines
    python -m tests.house --arrows    the same without numbers, as README.md shows it
    python -m tests.house --readme    write that picture into README.md

The docstring of `optpolined/__init__.py` lists the rooms from top to bottom.  The command prints
each import that goes up in that order and each circle of imports; the exit code is then 1.
"""

import argparse
import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

__all__ = ("README", "House", "Room", "draw", "picture", "read_house")

_ROOT = Path(__file__).resolve().parents[1]
PACKAGE = _ROOT / "daemon" / "optpolined"
README = _ROOT / "README.md"
_PICTURE = re.compile(r"(?<=-m tests\.house --arrows\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
_ROOM = re.compile(r"^    ([a-z0-9_]+(?:/[a-z0-9_]+)*)  +(\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Room:
    """A folder of the package, or a module at its top."""

    name: str
    purpose: str
    files: int
    lines: int


@dataclass(frozen=True, slots=True)
class House:
    """The rooms from top to bottom, and which file imports which."""

    rooms: Sequence[Room]
    imports: Mapping[str, frozenset[str]]
    """By module; names are without the package's own."""

    def room_of(self, module: str) -> str:
        """Return the innermost room that a module lies in; an empty name where none has it."""
        path = module.replace(".", "/")
        names = [room.name for room in self.rooms]
        inside = [name for name in names if path == name or path.startswith(f"{name}/")]
        return max(inside, key=len, default="")

    def arrows(self) -> dict[tuple[str, str], int]:
        """Count the imports from one room to another."""
        counted: Counter[tuple[str, str]] = Counter()
        for module, imported in self.imports.items():
            for other in imported:
                ends = self.room_of(module), self.room_of(other)
                if ends[0] != ends[1]:
                    counted[ends] += 1
        return dict(counted)

    def faults(self) -> list[str]:
        """Return a line for each import that goes up, each circle, each file outside all rooms."""
        order = {room.name: number for number, room in enumerate(self.rooms)}
        found = []
        for module, imported in sorted(self.imports.items()):
            room = self.room_of(module)
            if not room:
                found.append(f"{module}: lies in no room that optpolined/__init__.py names")
                continue
            for other in sorted(imported):
                below = self.room_of(other)
                if below and order[below] < order[room]:
                    found.append(f"{module} imports {other}: {below} is above {room}")
        try:
            TopologicalSorter(self.imports).prepare()
        except CycleError as error:
            found.append("a circle: " + " -> ".join(reversed(error.args[1])))
        return found


def read_house(package: Path = PACKAGE) -> House:
    """Read the rooms and imports of ``package``."""
    documented = ast.get_docstring(ast.parse((package / "__init__.py").read_text()), clean=False)
    named = dict(_ROOM.findall(documented or ""))
    modules = {_module(path, package): path for path in sorted(package.rglob("*.py"))}
    del modules[""]
    imports = {
        module: frozenset(_imports(path, package.name, modules)) - {module}
        for module, path in modules.items()
    }
    empty = House([Room(name, purpose, 0, 0) for name, purpose in named.items()], imports)
    paths: dict[str, list[Path]] = defaultdict(list)
    for module, path in modules.items():
        paths[empty.room_of(module)].append(path)
    rooms = [
        Room(name, purpose, len(paths[name]), sum(map(_lines, paths[name])))
        for name, purpose in named.items()
    ]
    return House(rooms, imports)


def _module(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def _imports(path: Path, package: str, modules: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a file imports, also inside its functions."""
    prefix = f"{package}."
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(prefix):
            module = (node.module or "").removeprefix(prefix)
            inside = [f"{module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else module for name in inside)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(prefix):
                    yield alias.name.removeprefix(prefix)


def draw(house: House, *, numbers: bool = True) -> str:
    """Return the house as text: a line for each room, then the rooms that it imports.

    :param numbers: Whether to add how many files and lines each room has.
    """
    arrows = house.arrows()
    lines = []
    for room in house.rooms:
        below = [other.name for other in house.rooms if (room.name, other.name) in arrows]
        size = f"{room.files:>3} files {room.lines:>6,} lines  " if numbers else ""
        lines.append(f"{room.name:<20}{size}{room.purpose}")
        lines += _wrapped(below)
    if numbers:
        files = sum(room.files for room in house.rooms)
        total = sum(room.lines for room in house.rooms)
        lines.append(f"{'in all':<20}{files:>3} files {total:>6,} lines")
    return "\n".join(lines)


def picture(readme: str) -> str | None:
    """Return the picture of the house in the text of README.md; ``None`` where it has none."""
    found = _PICTURE.search(readme)
    return found and found[0]


def _wrapped(names: Sequence[str], width: int = 96) -> Iterator[str]:
    line = "    ->"
    for name in names:
        if len(line) + 1 + len(name) > width:
            yield line
            line = "      "
        line += f" {name}"
    if names:
        yield line


def main() -> int:
    """Print the house; return 1 where an import goes up or in a circle."""
    parser = argparse.ArgumentParser(description="draw the rooms of the daemon")
    parser.add_argument("--arrows", action="store_true", help="leave out the numbers")
    parser.add_argument("--readme", action="store_true", help="write the picture into README.md")
    asked = parser.parse_args()
    house = read_house()
    if asked.readme:
        drawn = f"{draw(house, numbers=False)}\n"
        README.write_text(_PICTURE.sub(lambda _: drawn, README.read_text()))
    else:
        print(draw(house, numbers=not asked.arrows))  # noqa: T201 - what the command is for
    faults = house.faults()
    for fault in faults:
        print(f"house: {fault}", file=sys.stderr)  # noqa: T201
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
