"""The hypothesis profiles of the hostile guest, and a count of the examples that ran."""

import pytest
from hypothesis import HealthCheck, settings

from tests.hostile.examples import RAN, profile

# `make test` tries the same examples every time, so that it fails only where a change broke it.
settings.register_profile(
    "hostile",
    max_examples=2000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "nightly",
    max_examples=50_000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if RAN:
        counts = ", ".join(f"{surface} {count}" for surface, count in sorted(RAN.items()))
        terminalreporter.write_line(
            f"hostile guest: {RAN.total()} examples of {profile().max_examples} a surface: {counts}"
        )
