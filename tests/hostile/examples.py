"""How many examples each test runs, and how many ran."""

import functools
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NoReturn, ParamSpec

from hypothesis import settings

__all__ = ("RAN", "attack", "profile")

_P = ParamSpec("_P")

RAN: Final[Counter[str]] = Counter()
"""Examples by attack surface."""


def profile() -> settings:
    """The profile that HYPOTHESIS_PROFILE names; conftest.py registers ours."""
    return settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "hostile"))


_HUNG_SECONDS = 120


def _hung(*_: object) -> NoReturn:
    raise AssertionError("an example does not end")


@contextmanager
def _watched() -> Iterator[None]:
    """Make a failure of an example that hangs.

    Measures nothing: it ends the loops that the bounds on reads, packets and bytes cannot see.
    """
    before = signal.signal(signal.SIGALRM, _hung)
    signal.setitimer(signal.ITIMER_REAL, _HUNG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attack(surface: str, *, share: float = 1) -> Callable[[Callable[_P, None]], Callable[_P, None]]:
    """Count the examples of a test as attacks on ``surface``.

    ``share`` is its part of the profile's examples: the tests of a surface share them.
    """

    def decorate(test: Callable[_P, None]) -> Callable[_P, None]:
        @functools.wraps(test)
        def counted(*args: _P.args, **kwargs: _P.kwargs) -> None:
            RAN[surface] += 1
            with _watched():
                test(*args, **kwargs)

        chosen = profile()
        return settings(chosen, max_examples=max(1, round(chosen.max_examples * share)))(counted)

    return decorate
