"""Guests that watch their own text: patching one would look like an attack, and be answered so."""

from collections.abc import Callable, Iterable, Sequence

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import GuardedError
from optpolined.kernel.module.header import Header
from optpolined.kernel.module.module_list import GuestModule, read_module_names
from optpolined.kernel.paging import AddressSpace

__all__ = ("check_text_guard", "integrity_guard", "text_guard")

_LKRG = frozenset({"lkrg", "p_lkrg"})
_LOCKED_DOWN = "kernel_locked_down"


def text_guard(names: Iterable[str]) -> str | None:
    """Say who compares the kernel's text with what it was when he came; ``None`` where nobody does.

    LKRG (https://lkrg.org) is known by its module's name, one of ``names``.  At its next check
    (each 15 seconds) it panics over any byte that differs, be it one of ours that comes or one that
    goes.  One that was told to hide (sysctl lkrg.hide) is in no list of modules and is not found.
    """
    for name in names:
        if name in _LKRG:
            return f"LKRG (module {name})"
    return None


def check_text_guard(space: AddressSpace, header: Header) -> None:
    """See that no module would take a change of the text for an attack.

    :raise GuardedError: one would.
    :raise ModuleGoneError, HeaderError, ModuleListError: as of the list of modules.
    """
    guard = text_guard(read_module_names(space, header))
    if guard is not None:
        raise GuardedError(guard)


def integrity_guard(
    addresses: Callable[[str], Sequence[GuestVirtual]],
    read: Callable[[GuestVirtual, int], bytes],
    modules: Iterable[GuestModule],
) -> str | None:
    """Say what guards the integrity of the guest's kernel; ``None`` where nothing does.

    Lockdown keeps its level in ``kernel_locked_down`` (security/lockdown/lockdown.c): an enum
    lockdown_reason, 4 bytes, 0 for none.

    :raise TranslationError: the symbol's memory is not mapped.
    """
    guard = text_guard(module.name for module in modules)
    if guard is not None:
        return guard
    for address in addresses(_LOCKED_DOWN)[:1]:
        if any(read(address, 4)):
            return "lockdown"
    return None
