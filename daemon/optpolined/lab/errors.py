"""The errors of the laboratory.

LabError
+-- ReplayError   the command cannot do what its options say
"""

from optpolined.errors import OptpolinedError

__all__ = ("LabError", "ReplayError")


class LabError(OptpolinedError):
    """The laboratory cannot carry out a command."""


class ReplayError(LabError):
    """`optpolined replay` cannot do what its options say."""
