"""Draw the rooms of the daemon and the imports between them: ``make house``.

    python -m tests.house

The order of the rooms stands in the docstring of `optpolined/__init__.py`, top to bottom.  Imports
that go up in that order and files that import each other in a circle are printed; the exit code is
then 1.
"""

import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

__all__ = ("House", "Room", "read_house")

PACKAGE = Path(__file__).resolve().parents[1] / "daemon" / "optpolined"
_ROOM = re.compile(r"^    ([a-z0-9_]+(?:/[a-z0-9_]+)*)  +(\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Room:
    """A folder, or a module of the package itself."""

    name: str
    purpose: str
    files: int
    lines: int


@dataclass(frozen=True, slots=True)
class House:
    """The rooms from top to bottom, and which file imports which."""

    rooms: Sequence[Room]
    imports: Mapping[str, frozenset[str]]
    """By module, without the package's name."""

    def room_of(self, module: str) -> str:
        """The innermost room that a module lies in; empty where no room has it."""
        path = module.replace(".", "/")
        names = [room.name for room in self.rooms]
        inside = [name for name in names if path == name or path.startswith(f"{name}/")]
        return max(inside, key=len, default="")

    def arrows(self) -> dict[tuple[str, str], int]:
        """How many imports lead from one room to another."""
        counted: Counter[tuple[str, str]] = Counter()
        for module, imported in self.imports.items():
            for other in imported:
                ends = self.room_of(module), self.room_of(other)
                if ends[0] != ends[1]:
                    counted[ends] += 1
        return dict(counted)

    def faults(self) -> list[str]:
        """A line for each import that goes up, each circle, each file outside all rooms."""
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
    """The modules of the package that a file imports, wherever in it that stands."""
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


def draw(house: House) -> str:
    """The house as text: a line a room, with the rooms that it imports."""
    arrows = house.arrows()
    lines = []
    for room in house.rooms:
        below = [other.name for other in house.rooms if (room.name, other.name) in arrows]
        indent = "  " * room.name.count("/")
        head = f"{indent}{room.name.rsplit('/', 1)[-1]}"
        lines.append(f"{head:<14}{room.files:>3} files {room.lines:>6,} lines  {room.purpose}")
        lines += _wrapped(below)
    files, total = sum(room.files for room in house.rooms), sum(room.lines for room in house.rooms)
    lines.append(f"{'in all':<14}{files:>3} files {total:>6,} lines")
    return "\n".join(lines)


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
    """Print the house; answer 1 where an import goes up or in a circle."""
    house = read_house()
    print(draw(house))  # noqa: T201 - what the command is for
    faults = house.faults()
    for fault in faults:
        print(f"house: {fault}", file=sys.stderr)  # noqa: T201
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
