"""The heads of the thunks are armed together, put back together, and nothing foreign is touched."""

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module.abi import THUNK_HEAD
from optpolined.kernel.module.header import Header, parse_header
from optpolined.patching.protocol.steps import Write
from optpolined.patching.protocol.transport import Outcome
from optpolined.patching.thunk_heads import HeadState, ThunkHeads, census_refusal
from optpolined.qemu.errors import ResumedError
from optpolined.x86 import THUNK_REGISTERS, Register
from tests.unit.kernel.fake_guest import HEADER, PAGE_SIZE, PageTables, raw_header
from tests.unit.patching.patched_guest import FakeTransport, PatchedGuest

FOREIGN = b"\x0f\xae\xe8\xff\xe0"  # lfence; jmp *%rax


class Thunks(PatchedGuest):
    """A guest with the thunks of a kernel that was built with retpolines."""

    def __init__(self) -> None:
        super().__init__()
        self.tables.map(min(self.header.thunk.values()), 0x242_0000, flags=0)
        for register, thunk in self.header.thunk.items():
            self.tables.write(thunk, self.header.thunk_head[register] + b"\xf3\x90")
        self.built = self.code

    @property
    def code(self) -> bytes:
        """The page of the thunks."""
        return self.space.read(min(self.header.thunk.values()), 16 * 32)

    @property
    def heads(self) -> ThunkHeads:
        """As a daemon makes them that knows nothing of an earlier one."""
        return ThunkHeads(self.header, self.space, self.transport)

    def states(self) -> set[HeadState]:
        return set(self.heads.states().values())


@pytest.fixture
def guest() -> Thunks:
    return Thunks()


def test_each_armed_head_jumps_to_the_stub_of_its_register(guest: Thunks) -> None:
    assert census_refusal(guest.header, guest.space) is None
    assert guest.states() == {HeadState.ORIGINAL}
    assert guest.heads.leading_to_stubs() == []
    assert guest.heads.arm()
    assert guest.states() == {HeadState.ARMED}
    assert guest.heads.leading_to_stubs() == list(THUNK_REGISTERS)
    for register, thunk in guest.header.thunk.items():
        head = guest.space.read(thunk, THUNK_HEAD)
        assert head[0] == 0xE9
        target = thunk + THUNK_HEAD + int.from_bytes(head[1:], "little", signed=True)
        assert target == guest.header.census_stub[register]
    # Only the heads change, and each is written once.
    assert guest.transport.log == sorted(guest.header.thunk.values())
    assert guest.heads.disarm()
    assert guest.code == guest.built


def test_to_disarm_what_is_not_armed_writes_nothing(guest: Thunks) -> None:
    assert guest.heads.disarm()
    assert guest.transport.log == []


@pytest.mark.parametrize("foreign", [Register.RAX, Register.RDI, Register.R15])
def test_where_one_head_is_foreign_the_others_are_put_back(
    guest: Thunks, foreign: Register
) -> None:
    guest.write(guest.header.thunk[foreign], FOREIGN)
    before = guest.code
    assert not guest.heads.arm()
    assert guest.code == before
    assert guest.heads.states()[foreign] is HeadState.FOREIGN
    said = census_refusal(guest.header, guest.space)
    assert said == (
        f"the thunk of {foreign.name.lower()} holds 0f ae e8 ff e0, which another program wrote"
    )


def test_a_head_that_becomes_foreign_while_armed_is_left_alone(guest: Thunks) -> None:
    assert guest.heads.arm()
    guest.write(guest.header.thunk[Register.RDX], FOREIGN)
    assert guest.heads.disarm()
    states = guest.heads.states()
    assert states.pop(Register.RDX) is HeadState.FOREIGN
    assert set(states.values()) == {HeadState.ORIGINAL}
    assert guest.space.read(guest.header.thunk[Register.RDX], THUNK_HEAD) == FOREIGN
    assert guest.heads.leading_to_stubs() == []


def test_a_probe_on_an_armed_head_leads_to_the_stub_still(guest: Thunks) -> None:
    assert guest.heads.arm()
    guest.write(guest.header.thunk[Register.RDX], b"\xcc")
    assert guest.heads.disarm()
    assert guest.heads.leading_to_stubs() == [Register.RDX]


@pytest.mark.parametrize("fails_at", range(1, 15))
def test_a_daemon_that_fails_between_two_writes_leaves_what_another_one_puts_back(
    guest: Thunks, fails_at: int
) -> None:
    guest.transport.fails_at = fails_at
    with pytest.raises(ResumedError):
        guest.heads.arm()
    guest.transport.fails_at = None
    states = list(guest.heads.states().values())
    assert states.count(HeadState.ARMED) == fails_at
    assert guest.heads.disarm()
    assert guest.code == guest.built


@pytest.mark.parametrize("fails_at", range(15, 30))
def test_a_failure_while_disarming_can_be_followed_by_another_try(
    guest: Thunks, fails_at: int
) -> None:
    assert guest.heads.arm()
    guest.transport.fails_at = fails_at
    with pytest.raises(ResumedError):
        guest.heads.disarm()
    guest.transport.fails_at = None
    assert guest.heads.disarm()
    assert guest.code == guest.built


def test_a_head_that_does_not_go_back_is_told(
    guest: Thunks, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert guest.heads.arm()
    kept = guest.header.thunk[Register.RBP]
    write = FakeTransport.write

    def all_but_one(self: FakeTransport, writes: Sequence[Write]) -> list[Outcome]:
        return write(self, [item for item in writes if item.address != kept])

    monkeypatch.setattr(FakeTransport, "write", all_but_one)
    assert not guest.heads.disarm()
    assert guest.heads.leading_to_stubs() == [Register.RBP]


def with_thunk(header: Header, register: Register, address: int) -> Header:
    thunk = {**header.thunk, register: GuestVirtual(address)}
    return replace(header, thunk=MappingProxyType(thunk))


def test_a_thunk_that_crosses_a_page_refuses_the_census(guest: Thunks) -> None:
    first = min(guest.header.thunk.values())
    guest.tables.map(first + PAGE_SIZE, 0x250_0000, flags=0)
    for before_the_end in (1, 4):
        at = first + PAGE_SIZE - before_the_end
        guest.header = with_thunk(guest.header, Register.RBX, at)
        said = census_refusal(guest.header, guest.space)
        assert said == "the thunk of rbx begins in two pages"
    at = first + PAGE_SIZE - THUNK_HEAD
    guest.header = with_thunk(guest.header, Register.RBX, at)
    guest.write(at, guest.header.thunk_head[Register.RBX])
    assert census_refusal(guest.header, guest.space) is None
    assert guest.heads.arm()
    assert guest.heads.disarm()


def test_a_thunk_that_is_not_mapped_refuses_the_census_and_keeps_nothing_else_back(
    guest: Thunks,
) -> None:
    assert guest.heads.arm()
    at = min(guest.header.thunk.values()) + PAGE_SIZE
    guest.header = with_thunk(guest.header, Register.RBX, at)
    assert census_refusal(guest.header, guest.space) == "the thunk of rbx is not mapped"
    assert guest.heads.states()[Register.RBX] is HeadState.UNMAPPED
    assert Register.RBX not in guest.heads.leading_to_stubs()


@pytest.mark.parametrize(
    "head",
    [
        FOREIGN,
        b"\xff\xe0\xcc\xcc\xcc",
        b"\xe9\x07\0\0\0",
        b"\xe8\xff\xff\xff\xff",
        b"\xe8\x20\0\0\0",
        b"\xf3\xe8\x07\0\0",
        bytes(5),
    ],
)
def test_a_first_instruction_that_is_no_call_into_the_thunk_refuses_the_census(
    guest: Thunks, head: bytes
) -> None:
    heads = {**guest.header.thunk_head, Register.RSI: head}
    header = replace(guest.header, thunk_head=MappingProxyType(heads))
    guest.write(guest.header.thunk[Register.RSI], head)
    said = census_refusal(header, guest.space)
    assert said == f"the thunk of rsi begins with {head.hex(' ')}, which is no retpoline"


def test_the_last_and_the_first_address_of_the_top_2_gib_reach_each_other() -> None:
    """A rel32 has no byte to spare there."""
    raw = raw_header()
    low, high = (1 << 64) - (2 << 30), (1 << 64) - THUNK_HEAD
    raw.thunk[Register.RAX] = high
    raw.module_text = raw.arena = low
    raw.module_text_size = 0x10_0000
    raw.arena += 0x1_0000
    raw.arena_size = 0x8000
    for register in THUNK_REGISTERS:
        raw.learn_stub[register] = raw.census_stub[register] = low
    header = parse_header(bytes(raw), HEADER)
    guest = PatchedGuest()
    tables: PageTables = guest.tables
    tables.map(high & ~(PAGE_SIZE - 1), 0x260_0000, flags=0)
    tables.write(high, header.thunk_head[Register.RAX])
    heads = ThunkHeads(header, guest.space, guest.transport)
    assert heads.states()[Register.RAX] is HeadState.ORIGINAL
