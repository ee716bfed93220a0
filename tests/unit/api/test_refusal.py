"""The reasons for which a site is left alone."""

import re
from pathlib import Path

import pytest

from optpolined.api.refusal import Refusal

PROMETHEUS = Path(__file__).parents[3] / "configs/prometheus"


def test_every_reason_has_a_meaning_of_its_own() -> None:
    assert len({reason.meaning for reason in Refusal}) == len(Refusal)


@pytest.mark.parametrize("reason", Refusal)
def test_only_refused_changes_are_transient_or_foreign(reason: Refusal) -> None:
    if reason.is_transient or reason.is_foreign:
        assert reason.is_of_change
    assert not (reason.is_transient and reason.is_foreign)


def test_what_passes_by_itself() -> None:
    assert {reason for reason in Refusal if reason.is_transient} == {"arena_full", "held_up"}


def kind(reason: Refusal) -> str:
    """The second column of the table in configs/prometheus/README.md."""
    if not reason.is_of_change:
        return "policy" if reason.startswith("policy_") else "site"
    foreign, transient = reason.is_foreign * ", foreign", reason.is_transient * ", transient"
    return f"change{foreign}{transient}"


def test_the_documentation_has_each_reason_with_its_meaning() -> None:
    text = (PROMETHEUS / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Why a site is left alone")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    assert rows == [(reason, kind(reason), reason.meaning) for reason in Refusal]


def alert_expression(name: str) -> str:
    text = (PROMETHEUS / "optpolined.alerts.yml").read_text(encoding="utf-8")
    return text.partition(f"alert: {name}\n")[2].partition("labels:")[0]


def reasons_that_match(expression: str, operator: str) -> set[Refusal]:
    (pattern,) = re.findall(rf'reason{re.escape(operator)}"([^"]+)"', expression)
    return {reason for reason in Refusal if re.fullmatch(pattern, reason)}


def test_the_alert_of_foreign_text_looks_at_every_foreign_reason_and_no_other() -> None:
    found = reasons_that_match(alert_expression("OptpolinedForeignText"), "=~")
    assert found == {reason for reason in Refusal if reason.is_foreign}


def test_the_alert_of_refused_changes_leaves_out_what_is_foreign_or_passes_by_itself() -> None:
    left_out = reasons_that_match(alert_expression("OptpolinedChangesRefused"), "!~")
    assert left_out == {
        reason
        for reason in Refusal
        if reason.is_counted and (reason.is_foreign or reason.is_transient)
    }
