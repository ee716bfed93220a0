"""The errors of traces: a part of the tree of `learning/errors.py`."""

from pathlib import Path

from optpolined.learning.errors import LearningError

__all__ = ("TraceError",)


class TraceError(LearningError):
    """The trace at ``path`` cannot be read or written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
