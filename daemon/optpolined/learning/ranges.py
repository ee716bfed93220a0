"""The check that all settings share: each value in its range, of its kind."""

from collections.abc import Mapping
from math import isfinite

from optpolined.learning.errors import SettingError

__all__ = ("check_ranges",)


def check_ranges(settings: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Check the attributes that ``ranges`` names: the least and the most of each, in its unit.

    If both are whole numbers, the value must be one too.

    :raise SettingError: a value is out of its range, or of another kind; the error names the first.
    """
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        whole = isinstance(low, int)
        right = isinstance(value, int) or (isinstance(value, float) and not whole)
        if isinstance(value, bool) or not right or not isfinite(value) or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            raise SettingError(name, value, f"{kind} from {low:g} to {high:g}")
