"""The [learning] part of a guest's configuration."""

import itertools
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from optpolined.config import ConfigError, LearningConfig, load
from optpolined.learning.cost import COST_RANGES, Costs
from optpolined.learning.settings import (
    CONTINUOUS_RANGES,
    PERIODIC_RANGES,
    RANGES,
    ContinuousSettings,
    LearningSettings,
    PeriodicSettings,
)
from optpolined.learning.shape import SHAPE_RANGES, FormChoice, ShapeSettings
from optpolined.learning.strategies import StrategyName

MINIMAL = '[qemu]\nqmp_socket = "/run/vm.qmp"\n'
EXAMPLE = Path(__file__).parents[3] / "configs" / "guests" / "vm1.toml"
SECTIONS = {
    "hysteresis": (LearningSettings, RANGES),
    "continuous": (ContinuousSettings, CONTINUOUS_RANGES),
    "periodic": (PeriodicSettings, PERIODIC_RANGES),
    "shape": (ShapeSettings, SHAPE_RANGES),
    "costs": (Costs, COST_RANGES),
}


def read(directory: Path, text: str) -> LearningConfig:
    (directory / "vm.toml").write_text(MINIMAL + text, encoding="utf-8")
    return load("vm", [directory]).learning


def complaint(directory: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(directory, text)
    message = str(caught.value)
    assert "\n" not in message
    assert "vm.toml: " in message
    return message


@pytest.mark.parametrize("section", SECTIONS)
def test_the_example_shows_every_setting(section: str) -> None:
    settings, ranges = SECTIONS[section]
    shown = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))["learning"][section]
    names = [field.name for field in fields(settings)]
    assert list(shown) == names
    assert settings(**shown) == settings()
    assert set(ranges) == set(names) - {"form"}


def test_every_key_of_the_example_has_a_comment() -> None:
    text = EXAMPLE.read_text(encoding="utf-8").split("[learning.hysteresis]")[1]
    for section in text.split("\n\n"):
        lines = section.splitlines()
        bare = [
            line
            for before, line in itertools.pairwise(lines)
            if "=" in line and not line.startswith("#") and not before.startswith("#")
        ]
        # A pair of settings may share the comment of the first.
        assert bare in ([], ["tree_targets_max = 16"], ["port = 0"]), bare


@pytest.mark.parametrize("name", StrategyName)
def test_a_strategy_is_named(tmp_path: Path, name: StrategyName) -> None:
    assert read(tmp_path, f'[learning]\nstrategy = "{name}"\n').strategy is name


def test_an_unknown_strategy_names_those_that_there_are(tmp_path: Path) -> None:
    message = complaint(tmp_path, '[learning]\nstrategy = "best"\n')
    assert "learning.strategy: 'best' is not allowed" in message
    assert all(name in message for name in StrategyName)


@pytest.mark.parametrize("form", FormChoice)
def test_a_form_is_named(tmp_path: Path, form: FormChoice) -> None:
    assert read(tmp_path, f'[learning.shape]\nform = "{form}"\n').shape.form is form


def test_an_unknown_form_names_those_that_there_are(tmp_path: Path) -> None:
    message = complaint(tmp_path, '[learning.shape]\nform = "hash"\n')
    assert "learning.shape.form: 'hash' is not allowed" in message
    assert "keyed" in message


@pytest.mark.parametrize(
    ("section", "name"), [(s, name) for s, (_, ranges) in SECTIONS.items() for name in ranges]
)
def test_a_value_out_of_range_names_its_key_and_what_is_allowed(
    tmp_path: Path, section: str, name: str
) -> None:
    low, high = SECTIONS[section][1][name]
    message = complaint(tmp_path, f"[learning.{section}]\n{name} = {high * 2 + 1}\n")
    assert f"learning.{section}.{name} = " in message
    assert f"from {low:g} to {high:g}" in message


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    message = complaint(tmp_path, "[learning.periodic]\nretrain_epochs = 10\n")
    assert "learning.periodic.retrain_epochs = 10: must be more than learn_epochs (10)" in message
    message = complaint(tmp_path, "[learning.periodic]\nworker_epochs = 11\n")
    assert "learning.periodic.learn_epochs = 10: must be at least worker_epochs (11)" in message


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_names_those_that_are_allowed(tmp_path: Path, section: str) -> None:
    message = complaint(tmp_path, f"[learning.{section}]\nnoodle = 1\n")
    assert f"learning.{section}.noodle: unknown key" in message
    assert fields(SECTIONS[section][0])[0].name in message


def test_the_former_name_of_periodic_is_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    periodic = '[learning]\nstrategy = "periodic"\n[learning.periodic]\nworker_epochs = 3\n'
    now = read(tmp_path, periodic)
    assert not caplog.records
    assert read(tmp_path, periodic.replace("periodic", "epoch")) == now
    assert now.periodic.worker_epochs == 3
    (record,) = caplog.records
    assert "vm.toml: the strategy 'epoch' is called 'periodic' now" in record.getMessage()
    assert "epoch" not in now.model_dump()


def test_both_names_of_periodic_are_one_too_many(tmp_path: Path) -> None:
    message = complaint(tmp_path, "[learning.epoch]\n[learning.periodic]\n")
    assert "learning.epoch: unknown key" in message
