"""What can go wrong in the laboratory.

LabError
+-- TraceError    a file is not a trace, or cannot be read or written
+-- ReplayError   what the caller asks for cannot be had
"""

from pathlib import Path

from optpolined.errors import OptpolinedError

__all__ = ("LabError", "ReplayError", "TraceError")


class LabError(OptpolinedError):
    """The laboratory cannot do what it was asked for."""


class TraceError(LabError):
    """The trace at ``path`` cannot be read or written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


class ReplayError(LabError):
    """A wrong option of `optpolined replay`."""
