"""Find guests that watch their own text, because patching one looks like an attack to it."""

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
    """Return the name of what compares the kernel's text with a copy; ``None`` without such.

    LKRG (https://lkrg.org) is known by its module's name, one of ``names``.  At its next check,
    within 15 seconds, it panics over any byte that differs: one that the daemon writes, or one that
    it puts back.  An LKRG that is told to hide (sysctl lkrg.hide) is in no list and is not found.
    """
    for name in names:
        if name in _LKRG:
            return f"LKRG (module {name})"
    return None


def check_text_guard(space: AddressSpace, header: Header) -> None:
    """Check that no module takes a change of the text for an attack.

    :raise GuardedError: one does.
    :raise ModuleGoneError, HeaderError, ModuleListError: the list of modules cannot be read.
    """
    guard = text_guard(read_module_names(space, header))
    if guard is not None:
        raise GuardedError(guard)


def integrity_guard(
    addresses: Callable[[str], Sequence[GuestVirtual]],
    read: Callable[[GuestVirtual, int], bytes],
    modules: Iterable[GuestModule],
) -> str | None:
    """Return the name of what guards the kernel's integrity; ``None`` where nothing does.

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
