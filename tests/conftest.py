"""What holds for all tests.

Hypothesis tries the same examples every time, so that a test fails only when the code is broken.
`make nightly` tries new ones.  No example has a deadline, because machines are shared and no test
asserts a time.

A run that leaves processes, sockets or the like behind fails, and names them.
"""

from collections.abc import Generator

import pytest
from hypothesis import settings

from tests.leftovers import TestRun

settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")

_RUN = pytest.StashKey[TestRun]()


def pytest_configure(config: pytest.Config) -> None:
    """Mark what this run starts.  The workers of pytest-xdist inherit the mark."""
    if not hasattr(config, "workerinput"):
        config.stash[_RUN] = TestRun()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Fail the run where something is left after all fixtures have ended."""
    yield
    run = session.config.stash.get(_RUN, None)
    if run is None:
        return
    leftovers = run.leftovers()
    run.end(leftovers)
    if leftovers:
        reporter = session.config.get_terminal_writer()
        reporter.line()
        for leftover in leftovers:
            reporter.line(f"LEFT BEHIND by the tests: {leftover.what}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
