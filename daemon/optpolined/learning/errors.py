"""The errors of learning.

LearningError
+-- SettingError   a setting is out of its range, or contradicts another: the caller's fault
+-- StateError     a stored state cannot be read: the file's fault

A snapshot never raises, because the guest may write the counters.
"""

from optpolined.errors import OptpolinedError

__all__ = ("LearningError", "SettingError", "StateError")


class LearningError(OptpolinedError):
    """A snapshot, a setting or a state that makes no sense."""


class SettingError(LearningError):
    """The setting ``name`` has a value that is not allowed."""

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(f"{name} = {value!r}: must be {allowed}")
        self.name = name
        self.value = value
        self.allowed = allowed


class StateError(LearningError):
    """A serialised state was not written by this strategy."""
