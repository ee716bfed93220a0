"""Why a guest is not attached to.

OptpolinedError
+-- AttachRefusedError    as it is, or as it is configured; nothing was changed
|   +-- InUseError        another daemon serves it
+-- NothingToGainError    it has no retpolines
"""

from optpolined.errors import OptpolinedError

__all__ = ("AttachRefusedError", "InUseError", "NothingToGainError")


class AttachRefusedError(OptpolinedError):
    """The guest cannot be attached to as it is, or as it is configured; nothing was changed."""


class InUseError(AttachRefusedError):
    """Another daemon serves the QEMU process ``pid``."""

    def __init__(self, pid: int) -> None:
        super().__init__(
            f"another optpolined serves this guest (QEMU process {pid}): stop it first"
        )
        self.pid = pid


class NothingToGainError(OptpolinedError):
    """The guest has no retpolines to make direct."""

    def __init__(self, kernel: str) -> None:
        super().__init__(
            f"the guest's kernel {kernel} runs without retpolines: nothing to gain here "
            "(--force attaches anyway)"
        )
