"""The command `optpolined replay`."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from optpolined.cli import main
from optpolined.config import LearningConfig
from optpolined.lab.command import with_settings
from optpolined.lab.errors import ReplayError
from optpolined.learning.shape import FormChoice

TRACE = Path(__file__).parents[2] / "traces" / "one-cpu-differs.trace"


def replayed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["replay", *map(str, arguments)]) == 0
    said = capsys.readouterr()
    assert not said.err
    return said.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["replay", *map(str, arguments)]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1
    return said.err


def test_the_table_has_each_strategy_and_the_same_numbers_each_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = (replayed(capsys, TRACE) for _ in range(2))
    assert first == second
    for word in ("one-cpu-differs", "hysteresis", "continuous", "periodic", "(clairvoyant)"):
        assert word in first


def test_json_has_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(replayed(capsys, TRACE, "--json", "--strategy", "periodic,hysteresis"))
    assert [row["strategy"] for row in rows] == ["periodic", "hysteresis"]
    assert rows[0]["epochs"] == 160
    assert rows[0]["coverage"] < rows[1]["coverage"] <= 1
    assert rows[1]["regret_cycles"] > 0


def test_settings_are_set(capsys: pytest.CaptureFixture[str]) -> None:
    def first(*changes: str) -> float:
        sets = [word for change in changes for word in ("--set", change)]
        out = replayed(capsys, TRACE, "--json", "--strategy", "hysteresis", *sets)
        seconds: float = json.loads(out)[0]["first_promotion_seconds"]
        return seconds

    assert first("promote_epochs=6", "hysteresis.learn_epochs=12") == first() + 3 * 0.5


def test_a_setting_is_found_where_one_section_has_it() -> None:
    changed = with_settings(LearningConfig(), ["form=chain", "costs.miss_cycles=50"])
    assert changed.shape.form is FormChoice.CHAIN
    assert changed.costs.miss_cycles == 50
    assert changed.hysteresis == LearningConfig().hysteresis


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("promote_epochs", "use KEY=VALUE"),
        ("nothing=1", "use KEY=VALUE with a key of"),
        ("continuous.promote_epochs=1", "use KEY=VALUE with a key of"),
        ("max_targets=3", "say hysteresis.max_targets or periodic.max_targets"),
        ("promote_share=2", "promote_share = 2"),
        ("promote_share=x", "promote_share"),
        ("form=circle", "form"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(change: str, complaint: str) -> None:
    with pytest.raises(ReplayError) as caught:
        with_settings(LearningConfig(), [change])
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_trace_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "not a trace" in refused(capsys, TRACE, __file__)
    assert "No such file" in refused(capsys, tmp_path / "none")


def test_what_is_left_of_a_trace_is_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.trace"
    cut.write_bytes(TRACE.read_bytes()[:-2000])
    assert main(["replay", str(cut), "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == f"optpolined: {cut}: the end of the trace is missing; the rest is replayed\n"
    assert 0 < json.loads(said.out)[0]["epochs"] < 160


def test_traces_of_one_name_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = tmp_path / TRACE.name
    shutil.copy(TRACE, twice)
    with twice.open("ab") as file:
        file.write(TRACE.read_bytes())
    rows = json.loads(replayed(capsys, TRACE, twice, "--json", "--strategy", "periodic"))
    assert [row["trace"] for row in rows] == [
        "one-cpu-differs",
        "one-cpu-differs #1",
        "one-cpu-differs #2",
    ]


def test_an_unknown_strategy_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["replay", str(TRACE), "--strategy", "guess"])
    assert caught.value.code == 2
    assert "hysteresis, continuous, periodic" in capsys.readouterr().err


def test_without_matplotlib_a_plot_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.delitem(sys.modules, "optpolined.lab.plot", raising=False)
    said = refused(capsys, TRACE, "--plot", tmp_path / "x.png")
    assert "pip install 'optpolined[plot]'" in said
