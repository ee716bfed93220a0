"""Hypothesis tries the same examples every time, so that a test fails only when the code is broken.

`make nightly` tries new ones.  No example has a deadline, because machines are shared and no test
asserts a time.
"""

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")
