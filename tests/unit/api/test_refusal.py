"""The reasons for which a site is left alone."""

import pytest

from optpolined.api.refusal import Refusal


def test_every_reason_has_a_meaning_of_its_own() -> None:
    assert len({reason.meaning for reason in Refusal}) == len(Refusal)


@pytest.mark.parametrize("reason", Refusal)
def test_only_refused_changes_are_transient_or_foreign(reason: Refusal) -> None:
    if reason.is_transient or reason.is_foreign:
        assert reason.is_of_change
    assert not (reason.is_transient and reason.is_foreign)


def test_what_passes_by_itself() -> None:
    assert {reason for reason in Refusal if reason.is_transient} == {"arena_full", "held_up"}
