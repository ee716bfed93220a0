"""Makes a loop of call sites of one form that times itself and checks all calls.

What is compared must differ in the form alone.  Programs of the same setting and placement have
the same targets at the same offsets in their memory, the same order of calls, loads and filler
instructions around each site, and a loop that begins at the same offset in its page.  Every site's
first byte is aligned to 8, as the gcc plugin aligns it, and the distance between sites is an odd
multiple of 8: so a loop has its sites at all eight offsets in a cache line, and no form profits or
suffers from where its branches fall in it (on many CPUs that is worth more than the form).
"""

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import cycle
from typing import Final, Self

from optpolined.addresses import GuestVirtual
from optpolined.calibrate.forms import Kit, Maker, Site, SiteCode
from optpolined.calibrate.native import Code
from optpolined.calibrate.stub import LearnStub

__all__ = ("Layout", "Order", "Program", "Setting")

_PAGE: Final = 4096
_LINE: Final = 64
_SITE_ALIGN: Final = 8
_TARGET_BYTES: Final = 16  # -falign-functions=16
_CALLS: Final = 1 << 13
# A predictor learns an order that it has seen often enough: this many calls are too many for it.
_CALLS_OF_SEVERAL_TARGETS: Final = 1 << 16

_SPREAD_SITE_BYTES: Final = 72
_SPREAD_TARGET_BYTES: Final = 80
_FILLERS: Final = 4

_PAIR: Final = struct.Struct("<II")
_LOADS: Final = struct.Struct("<2sI2sI4s")

_SPARE_BYTES: Final = 1 << 16
_BYTES_PER_SITE: Final = 640
_BYTES_PER_TARGET: Final = 80
_DATA_PER_SITE: Final = 192

# rdi: the order, as pairs of a target and its key; rsi: passes in it; rdx: repetitions.  Returns
# the cycles of the time stamp counter; to [rcx] go the wrong bits of the targets that were called,
# and how many calls there were.
_PROLOGUE: Final = """
push rbx
push rbp
push r12
push r13
push r14
push rcx
mov r12, rdi
mov r13, rsi
mov r14, rdx
xor r8d, r8d
xor r9d, r9d
lfence
rdtsc
shl rdx, 32
lea rbp, [rdx + rax]
"""
_REPEAT: Final = """
mov rdi, r12
mov rsi, r13
"""
_EPILOGUE: Final = """
add rdi, {stride}
dec rsi
jnz {again}
dec r14
jnz {repeat}
rdtscp
shl rdx, 32
add rax, rdx
sub rax, rbp
pop rcx
mov [rcx], r8
mov [rcx + 8], r9
pop r14
pop r13
pop r12
pop rbp
pop rbx
ret
"""
_FLUSH: Final = """
clflush [rdi]
add rdi, 64
sub rsi, 64
ja {again}
mfence
ret
"""


class Order(StrEnum):
    """The order in which a site calls its targets."""

    RANDOM = "random"
    SKEWED = "90/10"


class Layout(StrEnum):
    """What is between two sites, and between two targets.

    ``SPREAD``: as in a kernel, other code, so that a longer site takes no more cache lines.  Every
    form has the same 72 bytes and the same number of filler instructions; targets are 80 bytes
    apart.  ``PACKED``: nothing, which fits the caches best and shows what a form's size costs at
    worst.
    """

    SPREAD = "spread"
    PACKED = "packed"


@dataclass(frozen=True, slots=True)
class Setting:
    """How many sites there are, with how many targets each, called in which order."""

    sites: int
    targets: int = 1
    order: Order = Order.RANDOM
    layout: Layout = Layout.SPREAD

    @property
    def passes(self) -> int:
        """Return how many different passes over the sites there are."""
        return max(1, (_CALLS if self.targets == 1 else _CALLS_OF_SEVERAL_TARGETS) // self.sites)


class Program:
    """The sites of ``setting`` in one form; ``placement`` says where things stand in memory."""

    def __init__(self, maker: Maker, setting: Setting, placement: int, stub: LearnStub) -> None:
        sites = setting.sites
        self._setting = setting
        self._memory = Code(
            _SPARE_BYTES + sites * (_BYTES_PER_SITE + setting.targets * _BYTES_PER_TARGET)
        )
        self._data = Code(_SPARE_BYTES + sites * _DATA_PER_SITE + 8 * sites * setting.passes)
        kit = Kit(self._memory, self._data, stub)
        chance = random.Random(placement)  # noqa: S311 - the same at every run
        offset = chance.randrange(_PAGE // _LINE) * _LINE + placement % 8 * _SITE_ALIGN
        other = self._target()
        own = self._targets(chance)
        # Blocks are made in the order in which sites get hot, which is not that of the text.
        makers = {
            number: maker(kit, Site(own[number], other))
            for number in chance.sample(range(sites), sites)
        }
        self._touched = self._data.used
        self._start = self._place_loop(kit, [makers[number] for number in range(sites)], offset)
        self._flush = self._memory.reserve(0, 64)
        self._memory.place(kit.assemble(_FLUSH.format(again=self._flush), self._flush))
        self._results = self._data.reserve(16, 64)
        self._order = self._data.place(_order(setting, own, chance), 64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.close()
        self._data.close()

    def cycles_per_call(self, repetitions: int = 1) -> float:
        """Run; return the cycles of a call, its part of the loop included.

        :raise AssertionError: a call did not reach its target.
        """
        return self._run(self._setting.passes, repetitions)

    def cycles_per_call_evicted(self) -> float:
        """The same for one pass, before which the sites' data has left the caches."""
        self._memory.call(self._flush, *self._touched)
        return self._run(1, 1)

    def _run(self, passes: int, repetitions: int) -> float:
        cycles = self._memory.call(self._start, self._order, passes, repetitions, self._results)
        found = self._data.read(self._results, 16)
        wrong, calls = (int.from_bytes(found[at : at + 8], "little") for at in (0, 8))
        wanted = passes * repetitions * self._setting.sites
        assert not wrong, "a call went elsewhere"
        assert calls == wanted, f"{calls} calls arrived instead of {wanted}"
        return cycles / wanted

    def _targets(self, chance: random.Random) -> Sequence[Sequence[GuestVirtual]]:
        """Return the targets of each site, at random places among all of them."""
        each, total = self._setting.targets, self._setting.sites * self._setting.targets
        places = [self._target() for _ in range(total)]
        chance.shuffle(places)
        return [places[at : at + each] for at in range(0, total, each)]

    def _target(self) -> GuestVirtual:
        """``xor eax, <its address>; or r8, rax; inc r9; ret``: all its calls must have meant it."""
        packed = self._setting.layout is Layout.PACKED
        size = _TARGET_BYTES if packed else _SPREAD_TARGET_BYTES
        at = self._memory.reserve(size, _TARGET_BYTES)
        self._memory.write(at, b"\x35" + at.to_bytes(4, "little") + b"\x49\x09\xc0\x49\xff\xc1\xc3")
        return at

    def _place_loop(self, kit: Kit, sites: Sequence[SiteCode], offset: int) -> GuestVirtual:
        """The function that runs the sites, the first of them at ``offset`` in its page."""
        prologue, repeat = (kit.assemble(text, GuestVirtual(0)) for text in (_PROLOGUE, _REPEAT))
        self._memory.reserve(len(prologue) + len(repeat))
        first = self._memory.reserve(offset, _PAGE) + offset
        start = GuestVirtual(first - len(repeat) - len(prologue))
        self._memory.write(start, prologue + repeat)
        for number, make in enumerate(sites):
            self._memory.place(_loads(8 * number))
            code = make(self._memory.reserve(0))
            self._memory.place(code + _filler(len(code), self._setting.layout))
        epilogue = _EPILOGUE.format(stride=8 * len(sites), again=first, repeat=first - len(repeat))
        self._memory.place(kit.assemble(epilogue, self._memory.reserve(0)))
        return start


def _order(setting: Setting, own: Sequence[Sequence[GuestVirtual]], chance: random.Random) -> bytes:
    """What the loop loads: for each call its target and its key, each a u32."""
    others = setting.targets - 1
    skewed = others and setting.order is Order.SKEWED
    weights = [0.9] + [0.1 / others] * others if skewed else [1.0] * setting.targets
    numbers = chance.choices(range(setting.targets), weights, k=setting.passes * setting.sites)
    called = zip(cycle(own), numbers, strict=False)
    return b"".join(_PAIR.pack(targets[number], number) for targets, number in called)


def _loads(offset: int) -> bytes:
    """``mov eax, [rdi + offset]; mov ecx, [rdi + offset + 4]``, and a nop for the alignment."""
    return _LOADS.pack(b"\x8b\x87", offset, b"\x8b\x8f", offset + 4, b"\x0f\x1f\x40\0")


@cache
def _filler(size: int, layout: Layout) -> bytes:
    """What stands between a site's code of ``size`` bytes and the next site's loads."""
    if layout is Layout.PACKED:
        return _nop(-size % _SITE_ALIGN)
    rest = _SPREAD_SITE_BYTES - _LOADS.size - size
    return b"".join(_nop((rest + number) // _FILLERS) for number in range(_FILLERS))


def _nop(size: int) -> bytes:
    """One instruction of 0 to 15 bytes that does nothing (Intel's manual, NOP)."""
    long = b"\x0f\x1f\x84\0\0\0\0\0"
    short = (b"", b"\x90", b"\x66\x90", b"\x0f\x1f\0", b"\x0f\x1f\x40\0", b"\x0f\x1f\x44\0\0")
    middle = (b"\x66\x0f\x1f\x44\0\0", b"\x0f\x1f\x80\0\0\0\0")
    return (*short, *middle)[size] if size < len(long) else b"\x66" * (size - len(long)) + long
