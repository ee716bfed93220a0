"""Static calls: listed, and pointed at other functions by their key.

What a key points to is read from its trampoline, and the sites of the key go where it goes.  Each
place is one instruction, changed as any other.  While a 0xCC stands at a site, the guest's handler
goes through the trampoline.  While one stands at the trampoline, it goes to the new target.  So
each call runs the old function or the new one.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from optpolined.addresses import GuestVirtual
from optpolined.api.refusal import Refusal
from optpolined.codegen.errors import DecodeError, ReachError
from optpolined.errors import OptpolinedError
from optpolined.kernel.errors import PokeTableFullError, TranslationError
from optpolined.kernel.module.abi import PokeState
from optpolined.kernel.module.poke_table import PokeEntry
from optpolined.kernel.paging import AddressSpace
from optpolined.kernel.sites.declarations import TRAMPOLINE_PREFIX, Declaration
from optpolined.kernel.sites.exclusions import Exclusions
from optpolined.kernel.sites.static_calls import (
    StaticCall,
    StaticPlace,
    collect_static_calls,
    static_instruction,
    static_target,
)
from optpolined.kernel.symbols.symbols import Symbols
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.execute import execute
from optpolined.patching.protocol.steps import Change, Protocol, StepPhase
from optpolined.patching.protocol.transport import Transport
from optpolined.qemu.errors import ResumedError
from optpolined.x86 import INT3

__all__ = (
    "StaticCallError",
    "StaticCalls",
    "StaticKey",
    "changeable",
    "find_static_calls",
    "slow_path",
)

_log = logging.getLogger(__name__)

_RETURN_THUNK: Final = "__x86_return_thunk"
_INIT_TEXT: Final = ("_sinittext", "_einittext")
_ATTEMPTS: Final = 3
_KEYS_SHOWN: Final = 8


class StaticCallError(OptpolinedError):
    """A static call cannot be pointed there; the message says why."""


@dataclass(frozen=True, slots=True)
class StaticKey:
    """One key for people.  ``target`` is a name, or empty where the call does nothing."""

    key: str
    target: str
    built: str
    sites: int
    module: str | None


def find_static_calls(
    declarations: Iterable[Declaration],
    space: AddressSpace,
    symbols: Symbols,
    originals: Mapping[GuestVirtual, bytes],
) -> tuple[Mapping[str, StaticCall], Sequence[str]]:
    """Return the static calls that code declares, by key, and why others are not believed.

    ``originals`` are the instructions that the poke table holds.
    """

    def code(address: GuestVirtual, size: int) -> bytes:
        try:
            return originals[address] if address in originals else space.read(address, size)
        except TranslationError:
            return b""

    return collect_static_calls(declarations, code, symbols.function)


def changeable(
    calls: Mapping[str, StaticCall], symbols: Symbols, exclusions: Exclusions
) -> tuple[Mapping[str, StaticCall], Sequence[str]]:
    """Return the static calls that may be changed, and why the others may not.

    Where one place of a key is in code that must be left alone, the whole key is left alone: that
    code might come to the trampoline while a 0xCC stands there.
    """

    def reason(address: GuestVirtual) -> Refusal | None:
        home = symbols.function(address)
        return home and exclusions.reason_at(address, home.name, home.module)

    may = {}
    refused = []
    for key, call in calls.items():
        why = next(filter(None, (reason(place.address) for place in call.places)), None)
        if why is None:
            may[key] = call
        else:
            refused.append(f"the static call {key} is left alone: one of its places is {why}")
    return may, refused


def slow_path(
    place: StaticPlace,
    target: GuestVirtual | None,
    *,
    return_thunk: GuestVirtual | None,
    former: GuestVirtual | None,
) -> GuestVirtual:
    """Return where the guest's handler goes while a 0xCC stands at ``place``.

    From a site it goes to the trampoline, and from the trampoline to the new ``target``.  Where the
    key is pointed at nothing it goes to the return thunk, or without one to the ``former`` target.
    """
    if place.address != place.trampoline:
        return place.trampoline
    return next(way for way in (target, return_thunk, former) if way is not None)


class StaticCalls:
    """The static calls of one guest."""

    def __init__(
        self,
        *,
        transport: Transport,
        space: AddressSpace,
        symbols: Symbols,
        entries: PokeEntries,
        protocol: Protocol,
        calls: Mapping[str, StaticCall],
    ) -> None:
        self._transport = transport
        self._space = space
        self._symbols = symbols
        self._entries = entries
        self._protocol = protocol
        self._calls = calls

    def replace_calls(self, calls: Mapping[str, StaticCall]) -> None:
        """Use the static calls that the guest has now."""
        self._calls = calls

    def list(self) -> list[StaticKey]:
        """Return every key, by name."""
        with self._space.snapshot() as pages:
            return [
                StaticKey(
                    key=key,
                    target=self._shown(call.trampoline, self._found(call.trampoline, pages)),
                    built=self._shown(call.trampoline, call.trampoline.original),
                    sites=len(call.sites),
                    module=call.module,
                )
                for key, call in sorted(self._calls.items())
            ]

    def set(self, key: str, function: str | None) -> int:
        """Point ``key`` at ``function``; ``None``: at nothing.  Return how many places changed.

        :raise StaticCallError: the guest has no such key or function, another program has changed a
            place, or the function is in a module that could go without the key.
        :raise QemuError: QEMU failed; this can be done again.
        """
        call = self._calls.get(key)
        if call is None:
            raise StaticCallError(f"no static call has the key {key!r} ({self._known()})")
        target = None if function is None else self._function(function, call)
        try:
            wanted = {place: self._instruction(place, target) for place in call.places}
        except ReachError as error:
            raise StaticCallError(str(error)) from error
        return self._change(wanted, target)

    def settle(self) -> None:
        """Send the sites of every key where its trampoline goes.

        A daemon may have died in the middle of a change.

        :raise QemuError: QEMU failed; this can be done again.
        """
        for call in self._calls.values():
            try:
                with self._space.snapshot() as pages:
                    target = self._goes_to(call.trampoline, self._found(call.trampoline, pages))
                    wanted = {}
                    for place in call.sites:
                        after = self._instruction(place, target)
                        if self._found(place, pages) not in (place.original, after):
                            wanted[place] = after
                self._change(wanted, target)
            except (StaticCallError, ReachError) as error:
                _log.warning("a static call is left as it is: %s", error)

    def restore(self) -> int:
        """Point every key at what it was built for; return how many places changed.

        :raise StaticCallError: another program has changed a place; the other keys are done.
        :raise QemuError: QEMU failed.
        """
        changed = 0
        failed: list[StaticCallError] = []
        for call in self._calls.values():
            wanted = {place: place.original for place in call.places}
            target = static_target(call.trampoline, call.trampoline.original)
            try:
                changed += self._change(wanted, target)
            except StaticCallError as error:
                failed.append(error)
        if failed:
            more = f" (and {len(failed) - 1} more such)" if len(failed) > 1 else ""
            raise StaticCallError(f"{failed[0]}{more}")
        return changed

    def _known(self) -> str:
        """Return the first keys, for a message."""
        keys = sorted(self._calls)
        more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
        return f"known: {', '.join(keys[:_KEYS_SHOWN])}{more}" if keys else "the guest has none"

    def _function(self, name: str, call: StaticCall) -> GuestVirtual:
        if name.startswith(TRAMPOLINE_PREFIX):
            raise StaticCallError(f"{name} is a static call itself: the call could go in a circle")
        found = [entry for entry in self._symbols.entries(name) if not self._is_init(entry.start)]
        if not found:
            raise StaticCallError(f"the guest has no function {name!r}")
        near = [entry for entry in found if entry.module in (None, call.module)]
        if not near:
            raise StaticCallError(
                f"{name} is in the module {found[0].module}, which could be unloaded: a static "
                "call goes to the kernel's functions or those of its own module"
            )
        if len(near) > 1:
            raise StaticCallError(f"the guest has {len(near)} functions {name!r}")
        return near[0].start

    def _is_init(self, address: GuestVirtual) -> bool:
        """Return whether the code's memory is freed after boot."""
        start, end = (self._symbols.address_of(mark) for mark in _INIT_TEXT)
        return start is not None and end is not None and start <= address < end

    def _instruction(self, place: StaticPlace, target: GuestVirtual | None) -> bytes:
        return static_instruction(place, target, self._symbols.address_of(_RETURN_THUNK))

    def _change(self, wanted: Mapping[StaticPlace, bytes], target: GuestVirtual | None) -> int:
        """Make the places what is ``wanted``; where the guest is resumed meanwhile, try again.

        Until then a place that is half-way takes its slow path, so calls stay right.
        """
        changed: set[GuestVirtual] = set()
        for attempt in range(1, _ATTEMPTS + 1):
            changes = self._changes(wanted, target)
            changed.update(change.site for change in changes)
            try:
                self._execute(changes)
                if attempt > 1:
                    self._disarm(wanted)
                break
            except ResumedError:
                self._entries.reload()  # some that were booked may never have been written
                if attempt == _ATTEMPTS:
                    raise
        return len(changed)

    def _execute(self, changes: Sequence[Change]) -> None:
        refused = execute(changes, self._protocol, self._transport).refused
        if any(refusal.phase is StepPhase.PREPARE for refusal in refused):
            self._entries.reload()
        for refusal in refused:
            raise StaticCallError(
                f"{refusal.write.address:#x} has changed ({refusal.outcome}): another program "
                "writes to it; ask again"
            )

    def _disarm(self, places: Iterable[StaticPlace]) -> None:
        """Disarm whole places that were left armed: a probe there would be taken for ours."""
        with self._space.snapshot() as pages:
            armed = self._entries.armed(pages)
        left = [self._entries.disarm(place.address) for place in places if place.address in armed]
        if left:
            self._transport.write(left)

    def _changes(
        self, wanted: Mapping[StaticPlace, bytes], target: GuestVirtual | None
    ) -> Sequence[Change]:
        changes = []
        with self._space.snapshot() as pages:
            for place, after in wanted.items():
                before = self._found(place, pages)
                if before != after:
                    changes.append(self._planned(place, before, after, target, pages))
        return changes

    def _planned(
        self,
        place: StaticPlace,
        before: bytes,
        after: bytes,
        target: GuestVirtual | None,
        pages: AddressSpace,
    ) -> Change:
        if self._protocol is Protocol.STOPPED and not pages.is_contiguous(
            place.address, len(before)
        ):
            # It takes two packets, and a daemon may die between them.
            raise StaticCallError(
                f"{self._symbols.name(place.address)} lies in two pages: only the protocol "
                "`breakpoint` can change it"
            )
        entry = PokeEntry(
            place.address,
            slow_path(
                place,
                target,
                return_thunk=self._symbols.address_of(_RETURN_THUNK),
                former=self._target(place, before),
            ),
            place.kind,
            PokeState.IDLE,
            place.original,
        )
        try:
            prepare, disarm = self._entries.guard(entry, pages, self._protocol)
        except PokeTableFullError as error:
            raise StaticCallError(str(error)) from error
        return Change(place.address, before, after, prepare, disarm)

    def _found(self, place: StaticPlace, pages: AddressSpace) -> bytes:
        """Return what stands there: a static call's instruction, or one that is half-way."""
        try:
            found = pages.read(place.address, len(place.original))
            if not self._is_half_way(place, found, pages):
                static_target(place, found)
        except (TranslationError, DecodeError) as error:
            raise StaticCallError(
                f"{self._symbols.name(place.address)} holds foreign bytes: {error}"
            ) from error
        return found

    def _is_half_way(self, place: StaticPlace, found: bytes, pages: AddressSpace) -> bool:
        """Return whether a 0xCC of ours stands there, which only `breakpoint` can end."""
        ends = found[0] == INT3 and self._protocol is Protocol.BREAKPOINT
        return ends and place.address in self._entries.armed(pages)

    def _target(self, place: StaticPlace, found: bytes) -> GuestVirtual | None:
        """Return where a call goes that comes to ``place`` while ``found`` stands there."""
        if found[0] == INT3:
            return next(entry.slow_path for entry in self._entries if entry.site == place.address)
        return static_target(place, found)

    def _goes_to(self, place: StaticPlace, found: bytes) -> GuestVirtual | None:
        """Return the same, but ``None`` where a trampoline only returns."""
        target = self._target(place, found)
        return None if target == self._symbols.address_of(_RETURN_THUNK) else target

    def _shown(self, place: StaticPlace, found: bytes) -> str:
        """Return the target of a place by name; empty where it does nothing."""
        target = self._goes_to(place, found)
        return "" if target is None else self._symbols.name(target)
