"""Counts what the model checker did, and says so at the end."""

import pytest

from tests.model.tally import Tally

_TALLY = pytest.StashKey[Tally]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TALLY] = Tally()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    return request.config.stash[_TALLY]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    tally = config.stash[_TALLY]
    if tally == Tally():
        return
    terminalreporter.section("model checker")
    terminalreporter.line(f"states explored: {tally.states}")
    terminalreporter.line(f"violations: {tally.violations}")
    if tally.seeded:
        terminalreporter.line(f"seeded faults caught: {tally.caught}/{tally.seeded}")
