"""Sites that must be left alone, and why.

    exclusions = discover(symbols.addresses, space.read, own_text)
    exclusions.reason(site)         # None, or a Refusal

A patched site differs from the kernel's in two ways: while it changes, it holds a 0xCC; afterwards,
its branch goes through a block, which touches the flags, the stack and per-CPU memory.  A site is
left alone where it cannot bear one of the two.

What may never hold a 0xCC is what runs between an int3 and our handler, on the way in and on the
way out: an int3 there meets itself until the stack is used up.  That is exc_int3() with what it
calls (arch/x86/kernel/traps.c, kernel/entry/common.c, kernel/context_tracking.c) and the notifier
chain (kernel/notifier.c).  Most of it is noinstr.  For the rest the kernel keeps a list of its own,
of functions that may hold no kprobe: they run on a kprobe's int3, and so on ours.

Such a site could bear one whole write in a stop.  It is left alone nevertheless: it is cold, the
live transport could not change it, and recovery would have to know it before it knows any symbol.

Other contexts can take an int3, because the kernel treats it as an NMI: interrupts, NMIs, code with
preemption off, and C code in .irqentry.text or .softirqentry.text, which are no reason here.
"""

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from optpolined.addresses import GuestVirtual
from optpolined.api.refusal import Refusal
from optpolined.kernel.errors import BlacklistError, SymbolsError
from optpolined.kernel.sites.scan import Site

__all__ = ("Exclusions", "TextRange", "discover", "read_kprobe_blacklist")


class TextRange(NamedTuple):
    """Code from ``start`` up to, not including, ``end``."""

    start: GuestVirtual
    end: GuestVirtual


# The linker's symbols (include/asm-generic/sections.h, arch/x86/include/asm/sections.h).  No kernel
# that can be attached to lacks those that are required.  .irqentry.text is within the entry text as
# far as it is assembly.
_SECTIONS: Final = (
    (Refusal.THUNK, "__indirect_thunk_start", "__indirect_thunk_end", False),
    (Refusal.INIT, "__init_begin", "__init_end", False),
    (Refusal.INIT, "_sinittext", "_einittext", False),
    (Refusal.ENTRY, "__entry_text_start", "__entry_text_end", True),
    (Refusal.NOINSTR, "__noinstr_text_start", "__noinstr_text_end", True),
    (Refusal.NOKPROBE, "__kprobes_text_start", "__kprobes_text_end", False),
    (Refusal.CPUIDLE, "__cpuidle_text_start", "__cpuidle_text_end", False),
)

# Those that 6.1 marks noinstr or NOKPROBE are here too: the reason then says more, and a kernel
# without kprobes has no blacklist.  Our handler shares the highest priority with kprobes' and the
# hardware breakpoints', which were there first.  The tracers run only where they are configured.
_INT3_PATH: Final = frozenset(
    {
        "atomic_notifier_call_chain",
        "bsearch",  # by poke_int3_handler(), where it is not inlined
        "ct_nmi_enter",
        "ct_nmi_exit",
        "do_int3",
        "exc_int3",
        "get_kprobe",
        "hw_breakpoint_exceptions_notify",
        "irqentry_nmi_enter",
        "irqentry_nmi_exit",
        "kgdb_ll_trap",
        "kprobe_exceptions_notify",
        "kprobe_int3_handler",
        "notifier_call_chain",
        "notify_die",
        "poke_int3_handler",
        "rcu_nmi_enter",
        "rcu_nmi_exit",
        "trace_hwlat_callback",
        "trace_osnoise_callback",
        "__traceiter_rcu_dyntick",  # the tracepoint in ct_nmi_enter() and ct_nmi_exit()
    }
)

_BLACKLIST: Final = "kprobe_blacklist"
# struct kprobe_blacklist_entry (include/linux/kprobes.h): list.next, list.prev, start_addr and
# end_addr; the head is a list_head.
_ENTRY: Final = struct.Struct("<4Q")
_HEAD: Final = struct.Struct("<2Q")
_BLACKLIST_MAX: Final = 1 << 16
_BLACKLIST_ATTEMPTS: Final = 3


class Exclusions:
    """The code that is left alone, asked by site.

    Build it anew when a module was loaded: the blacklist grows then.
    """

    def __init__(self, ranges: Iterable[tuple[Refusal, TextRange]]) -> None:
        by_reason: dict[Refusal, list[TextRange]] = {}
        for reason, text in ranges:
            by_reason.setdefault(reason, []).append(text)
        self._ranges = {reason: _Ranges(texts) for reason, texts in by_reason.items()}

    def reason(self, site: Site) -> Refusal | None:
        """Say why ``site`` must be left alone; None where it may be patched."""
        if site.live_flags:
            return Refusal.LIVE_FLAGS
        return self.reason_at(site.address, site.function, site.module)

    def reason_at(self, address: GuestVirtual, function: str, module: str | None) -> Refusal | None:
        """Return the same for an instruction in ``function`` that leaves the flags as they are."""
        inside = {reason for reason, ranges in self._ranges.items() if address in ranges}
        # gcc gives parts and clones of a function its name and a suffix (.cold, .isra.0).
        if module is None and function.partition(".")[0] in _INT3_PATH:
            inside.add(Refusal.INT3_PATH)
        return next((reason for reason in Refusal if reason in inside), None)


class _Ranges:
    """Addresses, as the union of ranges."""

    def __init__(self, ranges: Iterable[TextRange]) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in sorted(ranges):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)

    def __contains__(self, address: GuestVirtual) -> bool:
        nearest = bisect_right(self._starts, address) - 1
        return nearest >= 0 and address < self._ends[nearest]


def discover(
    addresses: Callable[[str], Sequence[GuestVirtual]],
    read: Callable[[GuestVirtual, int], bytes],
    own: TextRange,
) -> Exclusions:
    """Find the code of this guest that is left alone.

    ``addresses`` gives those of the kernel's symbols of a name, ``read`` kernel-virtual memory,
    ``own`` is the text of optpoline.ko with the arena.

    :raise SymbolsError: the kernel does not say where its noinstr or entry text is.
    :raise BlacklistError: the kernel's list of functions without kprobes cannot be read.
    :raise TranslationError: that list leads to memory that is not mapped.
    """
    ranges = [(Refusal.OWN, own)]
    for reason, first, last, required in _SECTIONS:
        start, end = _only(addresses(first), first), _only(addresses(last), last)
        if start is not None and end is not None:
            ranges.append((reason, TextRange(start, end)))
        elif required:
            raise SymbolsError(
                f"the guest's kernel has no symbol {first} or {last}: "
                "it cannot be told which of its code must be left alone"
            )
    head = _only(addresses(_BLACKLIST), _BLACKLIST)
    if head is not None:
        ranges.extend((Refusal.NOKPROBE, text) for text in read_kprobe_blacklist(read, head))
    return Exclusions(ranges)


def _only(addresses: Sequence[GuestVirtual], name: str) -> GuestVirtual | None:
    if len(addresses) > 1:
        raise SymbolsError(f"the guest's kernel has {len(addresses)} symbols named {name}")
    return addresses[0] if addresses else None


def read_kprobe_blacklist(
    read: Callable[[GuestVirtual, int], bytes], head: GuestVirtual
) -> list[TextRange]:
    """Read the list that stands in the guest's debugfs as kprobes/blacklist.

    ``head`` is the symbol ``kprobe_blacklist`` (kernel/kprobes.c).  The list grows and shrinks with
    modules, so that a walk may meet a change; it then starts again.

    :raise BlacklistError: it has no end, or changes all the time.
    :raise TranslationError: it leads to memory that is not mapped.
    """
    for _ in range(_BLACKLIST_ATTEMPTS):
        ranges = _walk_blacklist(read, head)
        if ranges is not None:
            return ranges
    raise BlacklistError("the guest's list of functions without kprobes is not whole")


def _walk_blacklist(
    read: Callable[[GuestVirtual, int], bytes], head: GuestVirtual
) -> list[TextRange] | None:
    """Walk it once; None where its links do not agree."""
    ranges: list[TextRange] = []
    before, (entry, last) = head, _HEAD.unpack(read(head, _HEAD.size))
    while entry != head:
        following, previous, start, end = _ENTRY.unpack(read(GuestVirtual(entry), _ENTRY.size))
        if previous != before:
            return None
        if len(ranges) == _BLACKLIST_MAX:
            raise BlacklistError(
                f"the guest's list of functions without kprobes is longer than {_BLACKLIST_MAX}"
            )
        ranges.append(TextRange(GuestVirtual(start), GuestVirtual(end)))
        before, entry = entry, following
    return ranges if before == last else None
