from dataclasses import fields

import pytest
from pydantic import TypeAdapter, ValidationError

from optpolined.errors import OptpolinedError
from optpolined.learning.errors import SettingError
from optpolined.learning.settings import RANGES, LearningSettings


def test_every_setting_has_a_range() -> None:
    assert [field.name for field in fields(LearningSettings)] == list(RANGES)


@pytest.mark.parametrize("name", RANGES)
def test_a_value_beyond_its_range_is_named(name: str) -> None:
    for value in (RANGES[name][0] / 2 - 1, RANGES[name][1] * 2 + 1):
        with pytest.raises(SettingError, match=f"^{name} = ") as caught:
            LearningSettings(**{name: value})  # type: ignore[arg-type]
        assert isinstance(caught.value, OptpolinedError)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_targets", 2.5),
        ("max_targets", True),
        ("promote_share", "0.9"),
        ("promote_share", float("nan")),
        ("min_calls_per_second", float("inf")),
        ("demote_epochs", None),
    ],
)
def test_a_value_of_another_kind_is_named(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=name):
        LearningSettings(**{name: value})  # type: ignore[arg-type]


def test_a_whole_number_is_a_number() -> None:
    assert LearningSettings(promote_share=1, min_calls_per_second=50).promote_share == 1


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"promote_share": 0.9, "demote_share": 0.1}, "demote_share"),
        ({"promote_epochs": 5, "learn_epochs": 4}, "learn_epochs"),
        ({"demote_epochs": 5, "audit_epochs": 4}, "audit_epochs"),
        ({"quarantine_epochs": 50, "quarantine_epochs_max": 40}, "quarantine_epochs_max"),
        ({"audit_interval_epochs": 5000}, "quarantine_epochs_max"),
    ],
)
def test_contradictions_are_named(settings: dict[str, float], name: str) -> None:
    with pytest.raises(SettingError) as caught:
        LearningSettings(**settings)  # type: ignore[arg-type]
    assert caught.value.name == name


def test_pydantic_builds_them_and_refuses_unknown_keys() -> None:
    adapter = TypeAdapter(LearningSettings)
    assert adapter.validate_python({"max_targets": 2}) == LearningSettings(max_targets=2)
    with pytest.raises(ValidationError, match="promote_shre"):
        adapter.validate_python({"promote_shre": 0.9})
