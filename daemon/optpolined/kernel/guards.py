"""Guests that watch their own text: patching one would look like an attack, and be answered so."""

from collections.abc import Callable, Iterable, Sequence

from optpolined.addresses import GuestVirtual
from optpolined.kernel.modules import GuestModule

__all__ = ("integrity_guard",)

_LKRG = frozenset({"lkrg", "p_lkrg"})
_LOCKED_DOWN = "kernel_locked_down"


def integrity_guard(
    addresses: Callable[[str], Sequence[GuestVirtual]],
    read: Callable[[GuestVirtual, int], bytes],
    modules: Iterable[GuestModule],
) -> str | None:
    """Say what guards the integrity of the guest's kernel; ``None`` where nothing does.

    Lockdown keeps its level in ``kernel_locked_down`` (security/lockdown/lockdown.c): an enum
    lockdown_reason, 4 bytes, 0 for none.  LKRG is known by its module's name.

    :raise TranslationError: the symbol's memory is not mapped.
    """
    for module in modules:
        if module.name in _LKRG:
            return f"LKRG (module {module.name})"
    for address in addresses(_LOCKED_DOWN)[:1]:
        if any(read(address, 4)):
            return "lockdown"
    return None
