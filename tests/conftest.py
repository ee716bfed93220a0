"""Hypothesis tries the same examples every time, so that a test fails only for who broke something.

New ones are for `make nightly`.  None has a deadline: machines are shared, and no test asserts a
time.
"""

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")
