"""The modules that the guest has loaded, and the first look at what guards it."""

from collections.abc import Sequence
from dataclasses import dataclass

from optpolined.kernel.errors import GuardedError
from optpolined.kernel.module.abi import RequestOp
from optpolined.kernel.module.guards import check_text_guard, integrity_guard
from optpolined.kernel.module.module_list import GuestModule, read_modules
from optpolined.kernel.symbols.symbols import Symbols
from optpolined.session.access import GuestAccess

__all__ = ("FirstLook", "LoadedModules", "look_first")


class LoadedModules:
    """The guest's list of modules: what it was when it was last read, and whether it changed."""

    def __init__(self, access: GuestAccess) -> None:
        self._access = access
        self._generation: int | None = None

    def have_changed(self) -> bool:
        """Return whether a module came or went since the list was last read.

        :raise ModuleGoneError: our module is no longer there.
        """
        return self._access.module_status().modules_generation != self._generation

    def read(self, *, ask: bool = True) -> list[GuestModule]:
        """Read the list, and the poke table anew: entries of modules that went have gone too.

        :param ask: Have our module make the list first.  That writes its mailbox, which is module
            data and no text.  A paused guest cannot answer; what the last request listed is read.
        :raise GuardedError: a module watches the text: nothing may be changed from now on.
        :raise KernelError: the list makes no sense, or was not made in time.
        """
        access = self._access
        generation = access.module_status().modules_generation
        if ask:
            access.mailbox.request(RequestOp.MODULES)
        self._generation = generation
        access.entries.reload()
        check_text_guard(access.space, access.header)
        return read_modules(access.space, access.header)


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What is known of a guest before anything of it is changed."""

    loaded: LoadedModules
    modules: Sequence[GuestModule]
    symbols: Symbols


def look_first(access: GuestAccess, *, ask: bool = True) -> FirstLook:
    """List the modules, load the symbols, and refuse a guest whose integrity is guarded.

    Nothing is written but the module's mailbox, so this comes before a recovery too.

    :param ask: See :meth:`LoadedModules.read`.
    :raise GuardedError: lockdown or LKRG guards the guest.
    :raise KernelError: the module list or the symbols make no sense.
    """
    loaded = LoadedModules(access)
    modules = loaded.read(ask=ask)
    symbols = Symbols.load(access.space, access.link.attachment.vmcoreinfo)
    symbols.set_modules(access.space, modules)
    guard = integrity_guard(symbols.addresses, access.space.read, modules)
    if guard is not None:
        raise GuardedError(guard)
    return FirstLook(loaded, modules, symbols)
