"""What can go wrong in the laboratory.

LabError
+-- ReplayError   what the caller asks for cannot be had
"""

from optpolined.errors import OptpolinedError

__all__ = ("LabError", "ReplayError")


class LabError(OptpolinedError):
    """The laboratory cannot do what it was asked for."""


class ReplayError(LabError):
    """A wrong option of `optpolined replay`."""
