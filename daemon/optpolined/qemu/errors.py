"""What can be wrong with QEMU, its sockets or its process, and whose fault it is.

QemuError
+-- MonitorError               the QMP socket
|   +-- MonitorAbsentError     operator   no such socket, or nothing listens on it
|   +-- MonitorPermissionError operator   the socket may not be opened by this user
|   +-- MonitorBusyError       operator   another client holds it
|   +-- MonitorProtocolError   operator   what answers is not QMP, or broke its rules
|   |   +-- HmpFormatError     ours       the human monitor printed what cannot be parsed
|   +-- MonitorTimeoutError    QEMU       no answer in time
|   +-- MonitorClosedError     QEMU       it hung up; or the caller closed the connection before
|   +-- MonitorCommandError    caller     QEMU refused a command
+-- ProcessError               operator   the QEMU process cannot be found
+-- GuestMemoryError           the guest's memory, as the host sees it
|   +-- OutOfRamError          caller     the guest has no RAM at an address
|   +-- MemoryMapError         QEMU       its account of the guest's RAM makes no sense
|   +-- PermissionDeniedError  operator   the host does not let us read QEMU's memory
|   +-- ProcessGoneError       QEMU       the process has ended
+-- StubError                  the gdbstub
|   +-- StubAbsentError        operator   it cannot be opened or connected to
|   +-- StubBusyError          operator   another gdb uses it
|   +-- StubTimeoutError       QEMU       no answer in time
|   +-- StubProtocolError      QEMU       what answers is not its gdbstub, or broke the rules
|   +-- StubClosedError        QEMU       it hung up; or an earlier error broke the connection
|   +-- StubStateError         caller     a call that the state of the connection does not allow
|   +-- StubReleasedError      caller     the stub is given up to a debugger now
|   +-- StubReadError          caller     the stub refused a read
|   +-- StubWriteError         caller     the stub refused a write
|   +-- ResumedError           others     something resumed the guest in the middle of a stop
+-- GuardianError              ours       the guardian process did not start

*Caller* is the code that calls this package, *ours* this package itself.  Below an error of this
tree, ``__cause__`` is what the library or the system raised, where there was such a thing.
"""

from optpolined.addresses import GuestPhysical
from optpolined.errors import OptpolinedError

__all__ = (
    "GuardianError",
    "GuestMemoryError",
    "HmpFormatError",
    "MemoryMapError",
    "MonitorAbsentError",
    "MonitorBusyError",
    "MonitorClosedError",
    "MonitorCommandError",
    "MonitorError",
    "MonitorPermissionError",
    "MonitorProtocolError",
    "MonitorTimeoutError",
    "OutOfRamError",
    "PermissionDeniedError",
    "ProcessError",
    "ProcessGoneError",
    "QemuError",
    "ResumedError",
    "StubAbsentError",
    "StubBusyError",
    "StubClosedError",
    "StubError",
    "StubProtocolError",
    "StubReadError",
    "StubReleasedError",
    "StubStateError",
    "StubTimeoutError",
    "StubWriteError",
    "one_line",
)

_ONE_LINE_MAX = 300


def one_line(said: str) -> str:
    """Return what QEMU said, for an error: one printable line of at most 300 characters."""
    line = " ".join(said[: 4 * _ONE_LINE_MAX].split())[:_ONE_LINE_MAX]
    return "".join(letter if letter.isprintable() else "?" for letter in line)


class QemuError(OptpolinedError):
    """Something is wrong with QEMU, its sockets or its process."""


class MonitorError(QemuError):
    """Something is wrong with the QMP socket."""


class MonitorAbsentError(MonitorError):
    """There is no such socket, or nothing listens on it."""


class MonitorPermissionError(MonitorError):
    """The socket may not be opened."""


class MonitorBusyError(MonitorError):
    """Another client holds the socket: QEMU serves one at a time and lets the others wait."""


class MonitorProtocolError(MonitorError):
    """What answers does not speak QMP."""


class HmpFormatError(MonitorProtocolError):
    """The human monitor's ``command`` printed a form that is not known: this package's fault."""

    def __init__(self, command: str, missing: str) -> None:
        super().__init__(
            f"QEMU's {command!r} printed a form that is not known: {missing}; report it with "
            "QEMU's version"
        )
        self.command = command


class MonitorTimeoutError(MonitorError):
    """QEMU did not answer in time."""


class MonitorClosedError(MonitorError):
    """The connection has ended."""


class MonitorCommandError(MonitorError):
    """QEMU refused a command.

    ``error_class`` is QMP's, such as ``CommandNotFound``; ``description`` is QEMU's text.
    """

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"QEMU refused {command}: {description}")
        self.command = command
        self.error_class = error_class
        self.description = description


class ProcessError(QemuError):
    """The QEMU process cannot be found."""


class GuestMemoryError(QemuError):
    """The guest's memory cannot be read from the host."""


class OutOfRamError(GuestMemoryError):
    """The guest has no RAM at ``address``, or less than ``size`` bytes of it."""

    def __init__(self, address: GuestPhysical, size: int) -> None:
        super().__init__(f"guest physical {address:#x}, {size} bytes: not all of it is RAM")
        self.address = address
        self.size = size


class MemoryMapError(GuestMemoryError):
    """QEMU's account of the guest's RAM cannot be used."""


class PermissionDeniedError(GuestMemoryError):
    """The host does not let us read QEMU's memory."""


class ProcessGoneError(GuestMemoryError):
    """The QEMU process has ended."""


class StubError(QemuError):
    """Something is wrong with the gdbstub."""


class StubAbsentError(StubError):
    """The gdbstub cannot be opened or connected to."""


class StubBusyError(StubError):
    """Another gdb uses the gdbstub: QEMU has one, for one client."""


class StubTimeoutError(StubError):
    """The gdbstub did not answer in time."""


class StubProtocolError(StubError):
    """What answers is not QEMU's gdbstub, or breaks the protocol."""


class StubClosedError(StubError):
    """The connection has ended, or an earlier error has made it useless."""


class StubStateError(StubError):
    """The caller asked for what the state of the connection does not allow."""


class StubReleasedError(StubError):
    """The gdbstub is given up to a debugger."""

    def __init__(self) -> None:
        super().__init__("the gdbstub is released to a debugger")


class StubReadError(StubError):
    """The gdbstub refused to read at ``address``."""

    def __init__(self, address: GuestPhysical, reply: str) -> None:
        super().__init__(f"the gdbstub refused to read at physical {address:#x}: {reply}")
        self.address = address


class StubWriteError(StubError):
    """The gdbstub refused to write at ``address``; other writes of the call may have been made."""

    def __init__(self, address: GuestPhysical, reply: str) -> None:
        super().__init__(f"the gdbstub refused to write at physical {address:#x}: {reply}")
        self.address = address


class ResumedError(StubError):
    """Something else resumed the guest in the middle of a stop.

    What the failed call wrote may be there or not, what it read is void, and the guest ran in
    between.  The stop has ended; the next one can begin.
    """


class GuardianError(QemuError):
    """The guardian process did not start."""
