"""Python's garbage collector, where it would only look through what is kept."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ("collector_rests",)


@contextmanager
def collector_rests() -> Iterator[None]:
    """Collect no cycles in this block, which makes none.

    An epoch makes some hundred thousand objects that stay until the next one.  To look through them
    over and over took half of the time of a decision.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
