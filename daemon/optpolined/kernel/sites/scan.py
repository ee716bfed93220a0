"""Retpoline sites: the calls and jumps in live text that go to a register's thunk.

    scan(text, base, Thunks.one_array(header.thunk), functions).sites

A site is found in two steps.  numpy finds every offset where ``e8`` or ``e9`` and the four bytes
after it would branch to a thunk; most of the text is passed over here.  capstone then decodes the
function that the offset lies in, from the function's start, and only what proves to be one whole
instruction is a site: the pattern may as well stand inside a constant.  The kernel's own table of
the same sites (``.retpoline_sites``) is gone after boot; a test takes it as the oracle.

The thunks alone say what a site is.  A site that is patched already no longer goes to a thunk:
``with_originals`` puts the poke table's copy back into the text that is to be scanned.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

import capstone
import numpy as np
import numpy.typing as npt

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Key
from optpolined.kernel.errors import TextError
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.sites.inline_part import InlinePart
from optpolined.kernel.sites.thunks import Thunks
from optpolined.kernel.symbols.site_name import SiteName
from optpolined.x86 import Register

__all__ = (
    "SITES_MAX",
    "FunctionRange",
    "RejectedBytes",
    "RejectionCause",
    "Scan",
    "Site",
    "scan",
    "with_originals",
)

SITES_MAX: Final = 1 << 17
"""Of one text; Debian's kernel has 7,861."""

_BRANCH_SIZE: Final = 5
_KINDS: Final = {0xE8: SiteKind.CALL, 0xE9: SiteKind.JMP}
_CS_PREFIX: Final = 0x2E
_TOP: Final = 1 << 64

# kvm's fastop loads the flags right before the call (arch/x86/kvm/emulate.c, fastop() and
# test_cc()).  One instruction between would still be near.
_FLAGS_REACH: Final = 16

# The text is searched in pieces, because what numpy makes of one is up to 32 times as long.
_PIECE: Final = 1 << 20

# One call of capstone allocates 248 bytes an instruction, and the guest may claim that a function
# is as long as its text.
_DECODE_COUNT: Final = 4096
_INSTRUCTION_MAX: Final = 15

_Addresses = npt.NDArray[np.uint64]
_Indices = npt.NDArray[np.intp]


class FunctionRange(Protocol):
    """What ``scan`` must know of a function; ``symbols.Function`` is one.  ``size`` is in bytes."""

    @property
    def start(self) -> GuestVirtual: ...
    @property
    def size(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def module(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Site:
    """One instruction that calls, or jumps to, the thunk of ``register``.

    ``original`` is the whole instruction, 5 bytes or, with a cs prefix, 6.  ``module`` is None in
    the kernel itself.  ``live_flags``: the flags were loaded right before, for the target to use.
    ``inline`` and ``key`` are what code that was built with our gcc plugin has beside.
    """

    address: GuestVirtual
    original: bytes
    kind: SiteKind
    register: Register
    thunk: GuestVirtual
    function: str
    module: str | None
    live_flags: bool = False
    inline: InlinePart | None = None
    key: Key | None = None

    @property
    def length(self) -> int:
        """Bytes of the instruction."""
        return len(self.original)

    @property
    def home(self) -> SiteName:
        """The function that the instruction is in."""
        return SiteName(self.module, self.function)


class RejectionCause(StrEnum):
    """Why bytes that would branch to a thunk are not a site."""

    NO_FUNCTION = "outside every function"
    OFF_BOUNDARY = "not on an instruction boundary"
    UNDECODABLE = "after bytes that are no instruction"
    PREFIX = "behind a prefix that is not cs"


@dataclass(frozen=True, slots=True)
class RejectedBytes:
    """Bytes that look like a site; ``address`` is that of the ``e8`` or ``e9``."""

    address: GuestVirtual
    reason: RejectionCause


@dataclass(frozen=True, slots=True)
class Scan:
    """What ``scan`` found, both in the order of addresses."""

    sites: list[Site]
    rejected: list[RejectedBytes]


def scan(
    text: bytes,
    base: GuestVirtual,
    thunks: Thunks,
    functions: Sequence[FunctionRange],
) -> Scan:
    """Find the sites in the ``text`` that stands at ``base``.

    ``functions`` may come in any order, overlap, and lie elsewhere.  The time is linear in the size
    of the text, whatever it and they contain: no byte is decoded more than twice.

    :raise TextError: there are more than ``SITES_MAX``, taken for sites or not.
    """
    targets = _branches(text, base, thunks)
    table = _Functions(functions, base, len(text))
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    result = Scan([], [])
    for function, offsets in table.group(targets):
        if function is None:
            result.rejected.extend(
                RejectedBytes(GuestVirtual(base + offset), RejectionCause.NO_FUNCTION)
                for offset in offsets
            )
            continue
        confirmed = _confirm(decoder, text, function.start - base, offsets)
        for offset, outcome in zip(offsets, confirmed, strict=True):
            if isinstance(outcome, RejectionCause):
                result.rejected.append(RejectedBytes(GuestVirtual(base + offset), outcome))
                continue
            start, live_flags = outcome
            thunk, register = targets[offset]
            result.sites.append(
                Site(
                    address=GuestVirtual(base + start),
                    original=text[start : offset + _BRANCH_SIZE],
                    kind=_KINDS[text[offset]],
                    register=register,
                    thunk=thunk,
                    function=function.name,
                    module=function.module,
                    live_flags=live_flags,
                )
            )
    result.sites.sort(key=lambda site: site.address)
    result.rejected.sort(key=lambda rejected: rejected.address)
    return result


def with_originals(
    text: bytes, base: GuestVirtual, originals: Mapping[GuestVirtual, bytes]
) -> bytes:
    """Return the ``text`` that stands at ``base`` with each of ``originals`` put over it.

    They are instructions by address, as the poke table holds them.  Those that do not lie in the
    text are left out.
    """
    restored = bytearray(text)
    # Whichever are fewer: of modules and of entries there may be many.
    span = range(base, base + len(text))
    inside = originals.keys() if len(originals) < len(span) else originals.keys() & set(span)
    for address in inside:
        offset, original = address - base, originals[address]
        if 0 <= offset <= len(text) - len(original):
            restored[offset : offset + len(original)] = original
    return bytes(restored)


def _branches(
    text: bytes, base: GuestVirtual, thunks: Thunks
) -> dict[int, tuple[GuestVirtual, Register]]:
    """Return the ascending offsets of ``e8`` and ``e9`` bytes that would branch to a thunk.

    Beside each stands the thunk, and the register that it names.
    """
    if len(text) < _BRANCH_SIZE:
        return {}
    octets = np.frombuffer(text, np.uint8)
    places = len(text) - _BRANCH_SIZE + 1
    rel32: npt.NDArray[np.int32] = np.ndarray((places,), "<i4", text, offset=1, strides=(1,))
    wanted = thunks.addresses()
    found: dict[int, tuple[GuestVirtual, Register]] = {}
    for start in range(0, places, _PIECE):
        piece = octets[start : min(start + _PIECE, places)]
        opcodes = start + np.flatnonzero((piece & 0xFE) == min(_KINDS))
        ends = opcodes.astype(np.uint64) + np.uint64((base + _BRANCH_SIZE) % _TOP)
        targets = ends + rel32[opcodes].astype(np.int64).view(np.uint64)
        hits = np.isin(targets, wanted)
        for offset, target in zip(opcodes[hits].tolist(), targets[hits].tolist(), strict=True):
            thunk = GuestVirtual(target)
            register = thunks.register_at(thunk, _KINDS[text[offset]])
            if register is not None:
                found[offset] = thunk, register
        if len(found) > SITES_MAX:
            raise TextError(f"the guest's text at {base:#x} holds more than {SITES_MAX} sites")
    return found


class _Functions:
    """The functions of a text, found by offset.

    An offset belongs to the nearest function that starts before it.  Where that one has ended (an
    inner label with a size of its own), it belongs to the one that reaches farthest.
    """

    def __init__(self, functions: Sequence[FunctionRange], base: GuestVirtual, size: int) -> None:
        inside = [function for function in functions if 0 <= function.start - base < size]
        starts = np.array([function.start - base for function in inside], np.int64)
        sizes = np.array([min(function.size, size) for function in inside], np.int64)
        # Of those that share a start, the longest comes last and is the one that is found.
        order = np.lexsort((sizes, starts))
        self._functions = [inside[index] for index in order.tolist()]
        self._starts = starts[order]
        self._ends = self._starts + sizes[order]
        farthest = np.maximum.accumulate(self._ends)
        ranks = np.arange(len(order))
        self._widest = np.maximum.accumulate(np.where(self._ends == farthest, ranks, 0))

    def group(self, offsets: Collection[int]) -> Iterator[tuple[FunctionRange | None, list[int]]]:
        """Yield each function that some of the (ascending) offsets lie in, with those."""
        groups: dict[int, list[int]] = {}
        wanted = np.fromiter(offsets, np.int64, len(offsets))
        for offset, index in zip(wanted.tolist(), self._find(wanted).tolist(), strict=True):
            groups.setdefault(index, []).append(offset)
        for index, members in groups.items():
            yield (None if index < 0 else self._functions[index]), members

    def _find(self, offsets: npt.NDArray[np.int64]) -> _Indices:
        """Return the index of each offset's function, or -1 outside all functions."""
        if not self._functions:
            return np.full(len(offsets), -1, np.intp)
        nearest = np.searchsorted(self._starts, offsets, "right") - 1
        found = np.where(self._ends[nearest] > offsets, nearest, self._widest[nearest])
        return np.where((nearest >= 0) & (self._ends[found] > offsets), found, -1)


def _confirm(
    decoder: capstone.Cs, text: bytes, start: int, offsets: Sequence[int]
) -> Iterator[tuple[int, bool] | RejectionCause]:
    """Decode from ``start``, a function's, to the last of ``offsets``.

    Yield, for each: where its instruction starts and whether the flags are live there, or why the
    bytes are no site.
    """
    ends = {offset + _BRANCH_SIZE for offset in offsets}
    sizes: dict[int, int] = {}
    flags_loaded: list[int] = []
    decoded = start
    for address, size, mnemonic in _instructions(decoder, text, start, max(ends)):
        decoded = address + size
        if decoded in ends:
            sizes[decoded] = size
        elif mnemonic.startswith("popf"):
            flags_loaded.append(decoded)
    for offset in offsets:
        end = offset + _BRANCH_SIZE
        size = sizes.get(end, 0)
        site = end - size
        if size == _BRANCH_SIZE or (size == _BRANCH_SIZE + 1 and text[site] == _CS_PREFIX):
            yield site, any(0 <= site - loaded <= _FLAGS_REACH for loaded in flags_loaded)
        elif size > _BRANCH_SIZE:
            yield RejectionCause.PREFIX
        elif decoded < end:
            yield RejectionCause.UNDECODABLE
        else:
            yield RejectionCause.OFF_BOUNDARY


def _instructions(
    decoder: capstone.Cs, text: bytes, start: int, end: int
) -> Iterator[tuple[int, int, str]]:
    """Decode ``text`` from ``start`` to beyond ``end``, or to what is no instruction.

    Yields offset, size and mnemonic.
    """
    while start < end:
        before = start
        # Long enough that no instruction before the count is up, or across the end, is cut.
        stop = min(end, start + _DECODE_COUNT * _INSTRUCTION_MAX) + _INSTRUCTION_MAX
        for address, size, mnemonic, _ in decoder.disasm_lite(
            text[start:stop], start, _DECODE_COUNT
        ):
            yield address, size, mnemonic
            start = address + size
        if start == before:
            return
