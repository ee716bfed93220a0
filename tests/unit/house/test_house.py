"""The rooms of the daemon: imports go downwards, and the test would notice if they did not."""

from pathlib import Path

from tests.house import read_house


def test_no_import_goes_up_or_in_a_circle() -> None:
    house = read_house()
    assert house.faults() == []
    assert len(house.imports) > 100
    assert house.arrows()


def test_every_room_has_files() -> None:
    assert [room.name for room in read_house().rooms if not room.files] == []


def _package(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "made_up"
    named = '"""Made up.\n\n    top      above\n    low      below\n"""\n'
    for name, text in {"__init__.py": named, **files}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return package


def test_an_import_that_goes_up_is_found(tmp_path: Path) -> None:
    files = {"top/a.py": "", "low/b.py": "def late() -> None:\n    import made_up.top.a\n"}
    assert read_house(_package(tmp_path, files)).faults() == [
        "low.b imports top.a: top is above low"
    ]


def test_a_circle_is_found(tmp_path: Path) -> None:
    files = {
        "low/a.py": "from made_up.low import b\n",
        "low/b.py": "from made_up.low.a import x\n",
        "top/c.py": "from made_up.low.b import y\n",
    }
    (fault,) = read_house(_package(tmp_path, files)).faults()
    assert fault.startswith("a circle: ")


def test_a_file_in_no_room_is_found(tmp_path: Path) -> None:
    (fault,) = read_house(_package(tmp_path, {"attic/d.py": ""})).faults()
    assert fault == "attic.d: lies in no room that optpolined/__init__.py names"
