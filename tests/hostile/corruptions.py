"""What a hostile guest may write over its own memory.

A corruption is decoded from 16 random bytes: drawing each part by itself takes hypothesis longer
than the daemon needs to read the guest.
"""

from collections.abc import Sequence
from typing import Final

from hypothesis import strategies as st

from optpolined.addresses import GuestPhysical
from tests.hostile.hostile_memory import Change
from tests.hostile.whole_guest import GUEST, RAM_SIZE, Region
from tests.unit.kernel.fake_guest import HEADER, KERNEL_TEXT, MODULE_TEXT, TABLES

__all__ = ("WORDS", "changes_of", "corruptions", "words")

_TOP: Final = 1 << 64

WORDS: Final[Sequence[int]] = (
    *(0, 1, 2, 5, 0xCC, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1),
    *(1 << 47, 1 << 51, 1 << 52, 1 << 63, _TOP - 1, _TOP - 8, _TOP - 4096),
    *(HEADER, KERNEL_TEXT, MODULE_TEXT, MODULE_TEXT + 0x3000, TABLES, _TOP - (2 << 30)),
    *(RAM_SIZE - 8, RAM_SIZE, 0x10_0000, 0x30_0000),
)
"""Edges of what a field may hold, and addresses that mean something elsewhere."""

words = st.sampled_from(WORDS) | st.integers(0, _TOP - 1) | st.integers(0, 512)

# Page table entries that lead to tables, themselves included, to data, and out of RAM: present,
# with every mix of writable, large page and no-execute.
_PAGES: Final = (
    *(0, 0x8000, 0x10_0000, 0x10_2000, 0x10_3000, 0x20_0000, 0x30_0000, RAM_SIZE, 1 << 45),
)
_FLAGS: Final = (0, 2, 0x80, 0x82, 1 << 63, 1 << 63 | 0x82, 1 << 12 | 0x80, 1 << 51)

_SIZE: Final = 16


def corruptions(
    *names: str, moving: bool = False, most: int = 6, last: int = 400
) -> st.SearchStrategy[list[Change]]:
    """Up to ``most`` changes to the named regions of the guest.

    With ``moving``, about half of them happen while the guest is read, after at most ``last``
    reads.
    """
    regions = [GUEST.regions[name] for name in names]
    size = 1 + _SIZE * most
    return st.binary(min_size=size, max_size=size).map(
        lambda data: changes_of(data, regions, last if moving else 0)
    )


def changes_of(data: bytes, regions: Sequence[Region], last: int) -> list[Change]:
    """Decode ``data``: how many changes, then 16 bytes for each."""
    most = len(data) // _SIZE
    return [
        _change(data[1 + _SIZE * number : 1 + _SIZE * (number + 1)], regions, last)
        for number in range(1 + data[0] % most)
    ]


def _change(code: bytes, regions: Sequence[Region], last: int) -> Change:
    """Which region, where in it, what, and when, as ``code`` has it."""
    region = regions[code[0] % len(regions)]
    offset = int.from_bytes(code[1:4], "little") % region.size
    if code[4] & 3:
        offset &= ~7
    physical = region.physical + offset
    value = _value(code[5] % 7, code[6], code[8:], physical)
    after = 1 + int.from_bytes(code[6:8], "little") % last if last and code[4] & 4 else 0
    return Change(after, physical, value[: region.size - offset])


def _value(kind: int, pick: int, raw: bytes, physical: int) -> bytes:
    """Eight or four bytes that mean something, or any few."""
    if kind <= 1:
        return WORDS[pick % len(WORDS)].to_bytes(8, "little")
    if kind == 2:
        return (WORDS[pick % len(WORDS)] % (1 << 32)).to_bytes(4, "little")
    if kind == 3:
        page = _PAGES[pick % len(_PAGES)] if pick & 0x40 else (raw[0] | raw[1] << 8) << 12
        return (page | 1 | _FLAGS[raw[2] % len(_FLAGS)]).to_bytes(8, "little")
    if kind == 4:
        bit = 1 << (pick & 7)
        return bytes((GUEST.memory.read(GuestPhysical(physical), 1)[0] ^ bit,))
    if kind == 5:
        return (raw[0] | raw[1] << 8).to_bytes(8, "little")
    return raw[: 1 + pick % 8]
