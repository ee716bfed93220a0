"""What stands at a site, told from its bytes alone."""

from dataclasses import dataclass
from enum import Enum

from optpolined.api.refusal import Refusal
from optpolined.x86 import INT3

__all__ = ("Range", "Standing", "classify", "classify_static", "foreign_reason")


class Standing(Enum):
    """Where the bytes at a site come from."""

    ORIGINAL = "original"
    OURS = "ours"
    INTERRUPTED = "interrupted"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses ``start`` up to ``end``."""

    start: int
    end: int

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.start <= address < self.end


def classify(site: int, found: bytes, original: bytes, *, armed: bool, arena: Range) -> Standing:
    """Tell what a site holds: ``found`` are its bytes, ``original`` those before the first poke.

    OURS is the same instruction with a target in the arena.  INTERRUPTED is a 0xCC with the tail of
    the original or of ours, while the site's poke-table entry is armed.  Any other 0xCC is a
    foreign probe.
    """
    if found == original:
        return Standing.ORIGINAL
    if len(found) != len(original) or len(found) < 5:
        return Standing.FOREIGN
    tail_is_ours = found[-4:] == original[-4:] or _target(site, found) in arena
    if found[0] == INT3:
        same_middle = found[1:-4] == original[1:-4]
        return Standing.INTERRUPTED if armed and same_middle and tail_is_ours else Standing.FOREIGN
    same_opcode = found[:-4] == original[:-4]
    return Standing.OURS if same_opcode and tail_is_ours else Standing.FOREIGN


def classify_static(found: bytes, *, armed: bool) -> Standing:
    """Tell whether a change of a static call stopped half-way.

    A whole instruction is not judged here, because a static call's key says what its target should
    be, not its bytes.
    """
    if found[:1] != bytes([INT3]):
        return Standing.ORIGINAL
    return Standing.INTERRUPTED if armed else Standing.FOREIGN


def foreign_reason(found: bytes) -> Refusal:
    """Return why the foreign bytes at a site keep it from being changed."""
    return Refusal.FOREIGN_BREAKPOINT if found[0] == INT3 else Refusal.FOREIGN_BYTES


def _target(site: int, instruction: bytes) -> int:
    displacement = int.from_bytes(instruction[-4:], "little", signed=True)
    return (site + len(instruction) + displacement) & 0xFFFF_FFFF_FFFF_FFFF
