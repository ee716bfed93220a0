"""The first instructions of the thunks, which a census points at its stubs and back.

    head of __x86_indirect_thunk_REG      e8 rel32   call, into the retpoline      (original)
    the same during a census              e9 rel32   jmp optp_census_REG           (armed)

1. Arm: all heads in one stop.  Every indirect call of the guest is counted from then on.
2. Disarm: all heads back, in one stop.
3. A task may still be inside a stub, preempted.  The stubs are never reused, so nothing waits for
   it but the module's release (a grace period).

Each head is one instruction that is replaced whole while every vCPU stands between two
instructions.  No 0xCC ever stands there, because notify_die() itself calls through a thunk; so only
a transport that stops the guest may do this.  A daemon that dies in between leaves a guest that
counts, and is slower, and right; the next one disarms first.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import TranslationError
from optpolined.kernel.module.abi import THUNK_HEAD
from optpolined.kernel.module.header import Header
from optpolined.kernel.paging import AddressSpace
from optpolined.patching.protocol.steps import Write
from optpolined.patching.protocol.transport import Outcome, Transport, TransportKind, Written
from optpolined.x86 import Register

__all__ = ("HeadState", "ThunkHeads", "census_refusal", "name_of")

_CALL, _JMP = 0xE8, 0xE9


class HeadState(Enum):
    """What stands at the head of a thunk."""

    ORIGINAL = "original"
    ARMED = "armed"
    FOREIGN = "foreign"
    UNMAPPED = "unmapped"


@dataclass(frozen=True, slots=True)
class _Head:
    address: GuestVirtual
    original: bytes
    armed: bytes

    def state(self, found: bytes) -> HeadState:
        """Return what ``found`` is here."""
        if found == self.original:
            return HeadState.ORIGINAL
        return HeadState.ARMED if found == self.armed else HeadState.FOREIGN


def name_of(register: Register) -> str:
    """Return what messages call the thunk of ``register``."""
    return f"the thunk of {register.name.lower()}"


def census_refusal(header: Header, space: AddressSpace) -> str | None:
    """Why no census can be taken in this guest; ``None`` where one can.

    :raise QemuError: the guest's memory cannot be read at all.
    """
    for register, address in header.thunk.items():
        head = header.thunk_head[register]
        name = name_of(register)
        if head[0] != _CALL or not 0 <= int.from_bytes(head[1:], "little", signed=True) < 32:
            return f"{name} begins with {head.hex(' ')}, which is no retpoline"
        try:
            if not space.is_contiguous(address, THUNK_HEAD):
                return f"{name} begins in two pages"
            found = space.read(address, THUNK_HEAD)
        except TranslationError:
            return f"{name} is not mapped"
        if found not in (head, _jmp(address, header.census_stub[register])):
            return f"{name} holds {found.hex(' ')}, which another program wrote"
    return None


class ThunkHeads:
    """The heads of one guest's thunks."""

    def __init__(self, header: Header, space: AddressSpace, transport: Transport) -> None:
        """Know what stands there, and what shall during a census."""
        assert transport.kind is TransportKind.STOPPED
        self._space = space
        self._transport = transport
        self._heads: Mapping[Register, _Head] = {
            register: _Head(
                address,
                header.thunk_head[register],
                _jmp(address, header.census_stub[register]),
            )
            for register, address in header.thunk.items()
        }

    def states(self) -> dict[Register, HeadState]:
        """Return what stands at each head now.

        :raise QemuError: the guest's memory cannot be read at all.
        """
        return {
            register: HeadState.UNMAPPED if found is None else self._heads[register].state(found)
            for register, found in self._found().items()
        }

    def leading_to_stubs(self) -> list[Register]:
        """Return the heads that may lead to the module, which must stay loaded for them.

        A probe that was set on an armed head has our target behind its 0xCC, and has copied it.

        :raise QemuError: the guest's memory cannot be read at all.
        """
        return [
            register
            for register, found in self._found().items()
            if found is not None and found[1:] == self._heads[register].armed[1:]
        ]

    def arm(self) -> bool:
        """Point every head at its stub; return whether all of them are.

        Where one holds foreign bytes it is left alone, and the others are put back.

        :raise QemuError: the transport failed; :meth:`states` tells what stands there.
        """
        if all(isinstance(outcome, Written) for outcome in self._change(HeadState.ARMED)):
            return True
        self.disarm()
        return False

    def disarm(self) -> bool:
        """Put every armed head back; return whether none is armed any more.

        Heads that hold foreign bytes are left alone.

        :raise QemuError: the transport failed; :meth:`states` tells what stands there.
        """
        if HeadState.ARMED in self.states().values():
            self._change(HeadState.ORIGINAL)
        return HeadState.ARMED not in self.states().values()

    def _change(self, wanted: HeadState) -> list[Outcome]:
        arms = wanted is HeadState.ARMED
        writes = [
            Write(head.address, head.original, head.armed)
            if arms
            else Write(head.address, head.armed, head.original)
            for head in self._heads.values()
        ]
        writes.sort(key=lambda write: write.address)
        return list(self._transport.write(writes))

    def _found(self) -> dict[Register, bytes | None]:
        """Return the bytes of each head; ``None`` where it is not mapped."""
        found: dict[Register, bytes | None] = {}
        with self._space.snapshot() as pages:
            for register, head in self._heads.items():
                found[register] = None
                with suppress(TranslationError):
                    found[register] = pages.read(head.address, THUNK_HEAD)
        return found


def _jmp(at: GuestVirtual, target: GuestVirtual) -> bytes:
    """``jmp target`` at ``at``; both lie in the top 2 GiB, which the header's check sees to."""
    return bytes([_JMP]) + (target - (at + THUNK_HEAD)).to_bytes(4, "little", signed=True)
