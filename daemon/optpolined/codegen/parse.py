r"""Turns the text of a block's instructions into its form.

Nothing about the text is trusted.  It is read from start to end, each instruction once, and every
branch must go where ``source`` says.  That alone makes sure that the code does what the form says,
whatever assembled it.

The text has a line for each instruction, which begins with the address where it ends::

    0xffffffffc0000006 cmp rax, -0x7f000000
    0xffffffffc000000c je 0xffffffff81000000
"""

import re
from dataclasses import dataclass
from itertools import pairwise

from optpolined.addresses import GuestVirtual
from optpolined.codegen.errors import DecodeError
from optpolined.codegen.forms import (
    KEY_BITS_MAX,
    MAX_LEAVES,
    Chain,
    Code,
    Key,
    Keyed,
    LearnKeys,
    Tree,
)
from optpolined.codegen.source import HITS_OFFSET, lower_half
from optpolined.x86 import Register

__all__ = ("MISS_INSTRUCTIONS", "DispatchParser", "Miss", "parse_miss")

_ADDRESS_END = 1 << 64
_DEPTH_MAX = (MAX_LEAVES - 1).bit_length()
_LOWER_HALVES = {lower_half(register): register for register in Register}

_NUMBER = r"-?(?:0x[0-9a-f]+|[0-9])"

# The way to the learning stub, which ends every block.
_MISS = re.compile(
    rf"""\S+ push (?P<scratch>\w+)
\S+ movabs (?P=scratch), (?P<record>{_NUMBER})
(?P<end>{_NUMBER}) jmp (?P<stub>{_NUMBER})
"""
)
MISS_INSTRUCTIONS = 3

# One target of a chain or a leaf.
_ARM = re.compile(
    rf"""\S+ cmp (?P<register>\w+), (?P<compared>{_NUMBER})
(?P<end>{_NUMBER}) je (?P<target>{_NUMBER})
"""
)

# The branch of a hit that is counted must end where the jne goes.
_COUNTED_ARM = re.compile(
    rf"""\S+ cmp (?P<register>\w+), (?P<compared>{_NUMBER})
\S+ jne (?P<end>{_NUMBER})
\S+ push (?P<scratch>\w+)
\S+ movabs (?P=scratch), (?P<record>{_NUMBER})
\S+ inc dword ptr gs:\[(?P=scratch) \+ {HITS_OFFSET:#x}\]
\S+ pop (?P=scratch)
(?P=end) jmp (?P<target>{_NUMBER})
"""
)

_AWAY = re.compile(rf"(?P<end>{_NUMBER}) jmp (?P<to>{_NUMBER})\n")

# The steps of the trees.
_HALVES = re.compile(
    rf"""\S+ cmp (?P<register>\w+), (?P<compared>{_NUMBER})
(?P<end>{_NUMBER}) jae (?P<upper>{_NUMBER})
"""
)
_BIT = re.compile(
    rf"""\S+ test (?P<key>\w+), (?P<mask>{_NUMBER})
(?P<end>{_NUMBER}) (?P<jump>jne|je) (?P<to>{_NUMBER})
"""
)

_NOTE = re.compile(
    rf"""\S+ push (?P<scratch>\w+)
\S+ push (?P<base>\w+)
\S+ mov (?P<index>\w+), (?P<key>\w+)
\S+ shr (?P=index), (?P<shift>{_NUMBER})
\S+ and (?P=index), (?P<mask>{_NUMBER})
\S+ movabs (?P=base), (?P<table>{_NUMBER})
\S+ mov dword ptr gs:\[(?P=base) \+ (?P=scratch)\*4\], (?P<target>\w+)
\S+ pop (?P=base)
(?P<end>{_NUMBER}) pop (?P=scratch)
"""
)


@dataclass(frozen=True, slots=True)
class Miss:
    """The miss way of a block: where it starts and ends, and its operands."""

    start: int
    end: int
    scratch: str
    record: int
    learn_stub: GuestVirtual


def parse_miss(text: str, start: int) -> Miss | None:
    """Return ``text`` as the miss way whose first instruction is at ``start``."""
    miss = _MISS.fullmatch(text)
    if miss is None:
        return None
    return Miss(
        start,
        int(miss["end"], 0),
        miss["scratch"],
        _number(miss["record"]),
        GuestVirtual(_number(miss["stub"])),
    )


class DispatchParser:
    """Reads ``text``, the dispatch part of the block at ``at`` that goes on to ``miss``.

    ``register`` is the one whose learning stub ``miss`` goes to.
    """

    def __init__(self, text: str, at: GuestVirtual, miss: Miss, register: Register) -> None:
        self._text = text
        self._at = at
        self._miss = miss
        self._register = register
        self._name = register.name.lower()
        self._position = 0
        self._address = int(at)

    def parse(self) -> tuple[Code, int]:
        """Return the form, and its key table, which is 0 if the form has no key table.

        :raise DecodeError: ``source`` writes no such dispatch part.
        """
        form: Code
        key_table = 0
        if _BIT.match(self._text):
            form = self._keyed()
        elif _HALVES.match(self._text):
            form = self._tree()
        elif note := self._take(_NOTE):
            form, key_table = self._learn_keys(note), _number(note["table"])
        else:
            form = self._chain()
        if self._position != len(self._text):
            raise self._unexpected()
        return form, key_table

    def _chain(self) -> Chain:
        targets = []
        counts_hits = _COUNTED_ARM.match(self._text) is not None
        while arm := self._take(_COUNTED_ARM if counts_hits else _ARM):
            targets.append(self._target(arm))
            if counts_hits and (arm["scratch"], _number(arm["record"])) != (
                self._miss.scratch,
                self._miss.record,
            ):
                raise self._refused("it counts hits and misses in different ways")
        return Chain(tuple(targets), counts_hits)

    def _tree(self) -> Tree:
        targets = self._half(_DEPTH_MAX)
        if any(one >= other for one, other in pairwise(targets)):
            raise self._refused("the targets of its tree do not rise")
        return Tree(tuple(targets))

    def _half(self, depth: int) -> list[GuestVirtual]:
        """Return the targets of a tree of at most ``depth`` more steps."""
        halves = self._take(_HALVES)
        if halves is None:
            return [self._leaf()]
        if depth == 0:
            raise self._refused("its tree is too deep")
        self._expect_register(halves["register"])
        lower = self._half(depth - 1)
        self._expect_here(halves["upper"])
        upper = self._half(depth - 1)
        if upper[0] != _number(halves["compared"]):
            raise self._refused(f"its tree parts at something else than {upper[0]:#x}")
        return lower + upper

    def _keyed(self) -> Keyed:
        """The steps to the first leaf tell the key, and all others must agree with it."""
        bits = mask = position = 0
        while bits <= KEY_BITS_MAX and (step := _BIT.match(self._text, position)):
            bits, mask, position, name = bits + 1, _number(step["mask"]), step.end(), step["key"]
        if bits > KEY_BITS_MAX:
            raise self._refused("its key has too many bits")
        if mask.bit_count() != 1:
            raise self._refused(f"it tests {mask:#x}, which is not one bit")
        key = Key(self._key_register(name), mask.bit_length() - 1, bits)
        return Keyed(key, tuple(self._subtree(key, bits, 0)))

    def _subtree(self, key: Key, bits: int, index: int) -> list[tuple[int, GuestVirtual]]:
        """Return the leaves of the tree over the lowest ``bits`` of the key.

        ``index`` has the other bits.
        """
        if bits == 0:
            return [(index, self._leaf())]
        step = self._take(_BIT)
        bit = 1 << (bits - 1)
        wanted = (lower_half(key.register), bit << key.shift)
        if step is None or (step["key"], _number(step["mask"])) != wanted:
            raise self._refused(f"its tree does not test bit {bits - 1} of the key in its turn")
        to = _number(step["to"])
        if to == self._miss.start:
            return self._subtree(key, bits - 1, index | (bit if step["jump"] == "je" else 0))
        if step["jump"] == "je":
            raise self._refused("a clear bit of its key leads elsewhere")
        clear = self._subtree(key, bits - 1, index)
        self._expect_here(step["to"])
        return clear + self._subtree(key, bits - 1, index | bit)

    def _leaf(self) -> GuestVirtual:
        arm = self._take(_ARM)
        if arm is None:
            raise self._unexpected()
        target = self._target(arm)
        away = self._take(_AWAY)
        if (_number(away["to"]) if away else self._address) != self._miss.start:
            raise self._refused(f"a miss of {target:#x} leads elsewhere")
        return target

    def _learn_keys(self, note: re.Match[str]) -> LearnKeys:
        mask = _number(note["mask"])
        key = Key(self._key_register(note["key"]), _number(note["shift"]), mask.bit_length())
        scratch = _LOWER_HALVES.get(note["index"])
        if (
            note["scratch"] != self._miss.scratch
            or scratch is None
            or note["scratch"] != scratch.name.lower()
            or note["base"] in (note["scratch"], self._name)
            or note["target"] != lower_half(self._register)
            or mask & (mask + 1)
        ):
            raise self._refused("it notes targets by key in another way")
        return LearnKeys(key)

    def _target(self, arm: re.Match[str]) -> GuestVirtual:
        self._expect_register(arm["register"])
        target = _number(arm["compared"])
        if _number(arm["target"]) != target:
            raise self._refused(f"the branch for {target:#x} goes elsewhere")
        return GuestVirtual(target)

    def _key_register(self, name: str) -> Register:
        register = _LOWER_HALVES.get(name)
        if register is None:
            raise self._refused(f"{name} holds no key")
        return register

    def _expect_register(self, name: str) -> None:
        if name != self._name:
            raise self._refused(f"it compares {name}, but its stub is for {self._name}")

    def _expect_here(self, address: str) -> None:
        if _number(address) != self._address:
            raise self._refused(f"no branch of its tree should go to {_number(address):#x}")

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._position)
        if found:
            self._position = found.end()
            self._address = int(found["end"], 0)
        return found

    def _unexpected(self) -> DecodeError:
        line = self._text[self._position :].partition("\n")[0]
        return self._refused(f"at {line}" if line else "it ends where a target should be")

    def _refused(self, reason: str) -> DecodeError:
        return DecodeError(self._at, reason)


def _number(text: str) -> int:
    """Return an immediate as a u64; capstone prints a sign if the instruction extends one."""
    return int(text, 0) % _ADDRESS_END
