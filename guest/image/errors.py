"""The errors on the way from a package name to a running guest.

    GuestError
    +-- PackagesError        a package cannot be found, downloaded or unpacked
    +-- VmlinuxError         a vmlinuz that is not laid out as expected
    +-- BuildError           the module, the programs or the image cannot be built
    +-- QemuEndedError       QEMU cannot be started, or ended by itself
    +-- GuestTimeoutError    the guest did not answer in time
    +-- GuestCommandError    a command in the guest failed

``str()`` says what is wrong; at its end is the output of the tool that failed, if any.
"""

__all__ = (
    "BuildError",
    "GuestCommandError",
    "GuestError",
    "GuestTimeoutError",
    "PackagesError",
    "QemuEndedError",
    "VmlinuxError",
)


class GuestError(Exception):
    """The guest cannot be built, started or used."""


class PackagesError(GuestError):
    """A Debian package cannot be found, downloaded or unpacked."""


class VmlinuxError(GuestError):
    """A file is not a bzImage with an LZ4 or XZ payload."""


class BuildError(GuestError):
    """A part of the image cannot be built, or was not built yet."""


class QemuEndedError(GuestError):
    """QEMU cannot be started, or ended by itself."""


class GuestTimeoutError(GuestError):
    """The guest did not answer in time."""


class GuestCommandError(GuestError):
    """A command in the guest ended with ``status``, not 0; ``output`` is what it printed."""

    def __init__(self, command: str, status: int, output: str) -> None:
        self.command = command
        self.status = status
        self.output = output
        super().__init__(f"exit code {status} of {command!r} in the guest: {output.strip()}")
