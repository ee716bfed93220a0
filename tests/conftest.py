"""Hypothesis tries the same examples every time, so that a test fails only for who broke something.

New ones are for `make nightly`.
"""

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")
