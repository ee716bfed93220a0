"""What can be wrong with what the guest's memory says.

    KernelError
    +-- TranslationError         a virtual address that the guest's page tables do not map
    +-- AttachError              the way from a vCPU's registers to the module's header
    |   +-- PagingOffError       no vCPU runs a 64-bit kernel with paging yet
    |   +-- ModuleMissingError   no header of optpoline.ko in the module area
    |   +-- AbiMismatchError     a header of another ABI version
    |   +-- HeaderError          a header whose fields make no sense
    |   +-- ModuleGoneError      the header that was found is no longer there
    |   +-- GuestReplacedError   the memory is another one: a snapshot was loaded
    |   +-- GuardedError         the guest watches its own text, or its kernel is locked down
    |   +-- VmcoreinfoError      the kernel's VMCOREINFO note is absent, torn or incomplete
    +-- SymbolsError             kallsyms cannot be read, or a symbol does not exist
    +-- ModuleListError          the module's table of loaded modules makes no sense
    +-- TextError                more sites than any kernel has
    +-- RequestError             the module's mailbox
    |   +-- RequestBusyError     an earlier request has not been answered
    |   +-- RequestTimeoutError  no answer in time
    |   +-- RequestFailedError   the module answered with an errno
    +-- StillInUseError          the module cannot go, because a thunk leads to it
    +-- BlacklistError           the kernel's list of functions without kprobes makes no sense
    +-- CountersError            more counters than a daemon is ready to read
    +-- ArenaError               an address that does not fit the arena's books
    |   +-- ArenaFullError       no room for another block
    +-- PokeEntryError           an entry of the poke table makes no sense
    +-- PokeTableFullError       no room for another site

All of them are the guest's doing, not the caller's.  What QEMU, its process or its sockets do wrong
is a QemuError and passes through this package unchanged.
"""

import os

from optpolined.addresses import GuestVirtual
from optpolined.errors import OptpolinedError

__all__ = (
    "AbiMismatchError",
    "ArenaError",
    "ArenaFullError",
    "AttachError",
    "BlacklistError",
    "CountersError",
    "GuardedError",
    "GuestReplacedError",
    "HeaderError",
    "KernelError",
    "ModuleGoneError",
    "ModuleListError",
    "ModuleMissingError",
    "PagingOffError",
    "PokeEntryError",
    "PokeTableFullError",
    "RequestBusyError",
    "RequestError",
    "RequestFailedError",
    "RequestTimeoutError",
    "StillInUseError",
    "SymbolsError",
    "TextError",
    "TranslationError",
    "VmcoreinfoError",
)

_ERRNO_MAX = 4095  # MAX_ERRNO, include/linux/err.h in the kernel


class KernelError(OptpolinedError):
    """The guest's memory does not say what it should."""


class TranslationError(KernelError):
    """The page tables do not map an address.

    ``level`` is that of the table whose entry ends the walk (5 is the PML5, 1 the last), or 0 where
    the address itself is not canonical or the page lies outside the guest's RAM.
    """

    def __init__(self, address: GuestVirtual, level: int, reason: str) -> None:
        where = f" (page table level {level})" if level else ""
        super().__init__(f"guest address {address:#x} cannot be translated: {reason}{where}")
        self.address = address
        self.level = level


class AttachError(KernelError):
    """This guest cannot be attached to."""


class PagingOffError(AttachError):
    """No vCPU has paging and long mode on."""

    def __init__(self) -> None:
        super().__init__("no vCPU runs a 64-bit kernel yet: wait until the guest has booted")


class ModuleMissingError(AttachError):
    """The guest has no optpoline module."""

    def __init__(self) -> None:
        super().__init__(
            "the guest has not loaded optpoline.ko: in the guest, run `modprobe optpoline` "
            "(or `insmod optpoline.ko`)"
        )


class AbiMismatchError(AttachError):
    """The module in the guest was built for another daemon."""

    def __init__(self, found: int, ours: int) -> None:
        super().__init__(
            f"the guest's optpoline.ko speaks ABI version {found}, this daemon version {ours}: "
            "install the same release on both sides"
        )
        self.found = found
        self.ours = ours


class HeaderError(AttachError):
    """A field of the module's header makes no sense."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        shown = f"{value:#x}" if isinstance(value, int) else repr(value)
        super().__init__(f"the optpoline header has {field} = {shown}, expected {expected}")
        self.field = field


class ModuleGoneError(AttachError):
    """The module was unloaded, or the guest was reset, since the header was read."""

    def __init__(self) -> None:
        super().__init__("the guest's optpoline.ko is gone: the guest was reset or it was unloaded")


class GuestReplacedError(AttachError):
    """The guest's memory is not the one that we left: a snapshot was loaded under our feet."""

    def __init__(self) -> None:
        super().__init__("the guest's memory is not the one that we left: was a snapshot loaded?")


class GuardedError(AttachError):
    """The integrity of the guest's kernel is guarded: to patch it would look like an attack."""

    def __init__(self, guard: str) -> None:
        super().__init__(f"the guest's kernel is guarded by {guard}: not patched")
        self.guard = guard


class VmcoreinfoError(AttachError):
    """The VMCOREINFO note does not say what a daemon needs."""


class SymbolsError(KernelError):
    """The guest's kallsyms cannot be used, or lack a symbol."""


class ModuleListError(KernelError):
    """The table of loaded modules makes no sense."""


class TextError(KernelError):
    """The guest's text holds more calls to thunks than any kernel's."""


class RequestError(KernelError):
    """The module did not do what the daemon asked of it."""


class RequestBusyError(RequestError):
    """The mailbox still holds a request, of an earlier daemon or of our own."""


class RequestTimeoutError(RequestError):
    """The module did not answer in time."""


class RequestFailedError(RequestError):
    """The module refused, or failed."""

    def __init__(self, request: str, errno: int) -> None:
        text = os.strerror(errno) if 0 < errno <= _ERRNO_MAX else f"result {errno}"
        super().__init__(f"the guest's optpoline.ko answered {request} with: {text}")
        self.request = request
        self.errno = errno


class StillInUseError(KernelError):
    """The module must stay loaded, because the guest's code leads to it."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where} leads to optpoline.ko")


class BlacklistError(KernelError):
    """The kernel's list of functions that may hold no kprobe cannot be read."""


class CountersError(KernelError):
    """The guest claims more counters than a daemon is ready to read."""


class ArenaError(KernelError):
    """An address, or a size, that does not fit what the arena has given out."""


class ArenaFullError(ArenaError):
    """No free range of the arena is long enough."""

    def __init__(self, size: int, free: int, retired: int) -> None:
        super().__init__(
            f"the arena has no {size} bytes in a row left ({free} are free, {retired} wait for a "
            "grace period): build optpoline.ko with a larger ARENA_MIB"
        )
        self.size = size
        self.free = free
        self.retired = retired


class PokeEntryError(KernelError):
    """An entry of the poke table makes no sense; the message names the field."""


class PokeTableFullError(KernelError):
    """Every place of the poke table is taken, by sites or by entries that make no sense."""

    def __init__(self, capacity: int) -> None:
        super().__init__(
            f"the guest's poke table has no free place among {capacity}: "
            "load optpoline.ko with a larger nr_records"
        )
        self.capacity = capacity
