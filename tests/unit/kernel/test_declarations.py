"""The section ``.optpoline_sites``, read from memory that the guest may have written."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import KEY_BITS_MAX, Key
from optpolined.kernel.sites.declarations import (
    Declaration,
    DeclarationKind,
    Declarations,
    read_declarations,
)
from optpolined.x86 import Register
from tests.unit.kernel.fake_guest import PAGE_SIZE, FakeGuest

RUN = GuestVirtual(0xFFFF_FFFF_C060_0000)
SIZE = 4 * PAGE_SIZE
MAGIC = 0x5354504F
NONE = 0xFF
INLINE = (DeclarationKind.INLINE_CALL, DeclarationKind.INLINE_JMP)


def run(*records: bytes, version: int = 1, count: int | None = None) -> bytes:
    size, of = 16, len(records) if count is None else count
    return struct.pack("<IHHII", MAGIC, version, size, of, 0) + b"".join(records)


def record(
    kind: int,
    *,
    site: int = -0x1000,
    other: int = 0,
    register: int = NONE,
    key: tuple[int, int, int] = (NONE, 0, 0),
) -> bytes:
    return struct.pack("<iiBBBBB3x", site, other, kind, register, *key)


def at_record(number: int) -> int:
    return RUN + 16 + 16 * number


def read(data: bytes, runs: Sequence[GuestVirtual] = (RUN,)) -> Declarations:
    guest = FakeGuest()
    guest.kernel.map_range(RUN, 0x200_0000, SIZE)
    guest.kernel.write(RUN, data)
    return read_declarations(guest.space, runs)


def test_one_record_of_each_kind() -> None:
    keyed = record(DeclarationKind.INLINE_CALL, register=Register.R11, key=(Register.RDI, 4, 3))
    plain = record(DeclarationKind.INLINE_JMP, site=0x40, register=Register.RAX)
    call = record(DeclarationKind.STATIC_CALL, other=-0x2000)
    tail = record(DeclarationKind.STATIC_JMP, other=0x30)
    trampoline = record(DeclarationKind.TRAMPOLINE)
    declared = read(run(keyed, plain, call, tail, trampoline))
    assert declared.refused == []
    assert declared.records == [
        Declaration(
            DeclarationKind.INLINE_CALL,
            GuestVirtual(at_record(0) - 0x1000),
            GuestVirtual(0),
            Register.R11,
            Key(Register.RDI, 4, 3),
        ),
        Declaration(
            DeclarationKind.INLINE_JMP,
            GuestVirtual(at_record(1) + 0x40),
            GuestVirtual(0),
            Register.RAX,
            None,
        ),
        *(
            Declaration(kind, GuestVirtual(at_record(n) - 0x1000), GuestVirtual(other), None, None)
            for n, kind, other in (
                (2, DeclarationKind.STATIC_CALL, at_record(2) + 4 - 0x2000),
                (3, DeclarationKind.STATIC_JMP, at_record(3) + 4 + 0x30),
                (4, DeclarationKind.TRAMPOLINE, 0),
            )
        ),
    ]


def test_several_runs_each_once() -> None:
    first = run(record(DeclarationKind.TRAMPOLINE))
    second = run(
        record(DeclarationKind.TRAMPOLINE, site=8), record(DeclarationKind.TRAMPOLINE, site=16)
    )
    other = GuestVirtual(RUN + len(first))
    declared = read(first + second, [RUN, other, RUN])
    assert len(declared.records) == 3
    assert declared.refused == []


@pytest.mark.parametrize("version", [0, 2, 0xFFFF])
def test_another_version_says_in_one_line_to_rebuild(version: int) -> None:
    declared = read(run(record(DeclarationKind.TRAMPOLINE), version=version))
    assert declared.records == []
    (line,) = declared.refused
    assert f"version {version}," in line
    assert "rebuild that code with this optpolined's gcc plugin" in line
    assert line.isprintable()


def test_what_is_no_run_is_refused() -> None:
    assert read(bytes(16)).records == []
    nowhere = GuestVirtual(RUN + SIZE)
    beyond = run(record(DeclarationKind.TRAMPOLINE), count=SIZE // 16)
    for declared in (read(b"", [nowhere]), read(beyond)):
        assert declared.records == []
        (line,) = declared.refused
        assert "not mapped" in line


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (record(0), "its kind is 0"),
        (record(6), "its kind is 6"),
        (record(DeclarationKind.INLINE_CALL), "no target register has the number 255"),
        (record(DeclarationKind.INLINE_JMP, register=Register.RSP), "no target register"),
    ],
)
def test_a_record_without_sense_is_refused_and_the_next_one_read(data: bytes, why: str) -> None:
    declared = read(run(data, record(DeclarationKind.TRAMPOLINE)))
    (line,) = declared.refused
    assert why in line
    assert len(declared.records) == 1


@pytest.mark.parametrize(
    "key",
    [
        (Register.R11, 0, 1),  # the target itself
        (Register.RSP, 0, 1),
        (16, 0, 1),
        (Register.RDI, 0, 0),
        (Register.RDI, 0, KEY_BITS_MAX + 1),
        (Register.RDI, 31, 1),
        (Register.RDI, 255, 6),
    ],
)
def test_a_key_that_no_block_can_test_is_refused(key: tuple[int, int, int]) -> None:
    declared = read(run(record(DeclarationKind.INLINE_CALL, register=Register.R11, key=key)))
    assert declared.records == []
    assert len(declared.refused) == 1


def test_the_records_of_all_runs_together_are_bounded() -> None:
    """Also those without sense count, and a run that cannot be read to its end."""
    guest = FakeGuest()
    of_one = 50_000
    size = -(-16 * (of_one + 1) // PAGE_SIZE) * PAGE_SIZE
    guest.kernel.map_range(RUN, 0x200_0000, size)
    starts = [GuestVirtual(RUN + 16 * number) for number in range(4)]
    for start in starts:
        guest.kernel.write(start, run(count=of_one - 4))
    declared = read_declarations(guest.space, starts)
    too_many = [line for line in declared.refused if line.endswith("are too many")]
    assert len(too_many) == 2
    assert len(declared.records) + len(declared.refused) <= (1 << 17) + len(starts)

    unmapped = [GuestVirtual(RUN + size - 16 - 16 * number) for number in range(3)]
    for start in unmapped:
        guest.kernel.write(start, run(count=of_one))
    lines = read_declarations(guest.space, unmapped).refused
    assert [line for line in lines if "not mapped" in line] == lines[:2]
    assert lines[2].endswith("are too many")


def test_the_runs_are_bounded() -> None:
    declared = read(b"", [GuestVirtual(RUN + number) for number in range((1 << 15) + 10)])
    assert len(declared.refused) == (1 << 15) + 1
    assert "more than 32768" in declared.refused[-1]


@settings(deadline=None)
@given(
    rows=st.lists(
        st.builds(
            record,
            st.integers(0, 7),
            site=st.integers(-(2**31), 2**31 - 1),
            other=st.integers(-(2**31), 2**31 - 1),
            register=st.integers(0, 17) | st.just(NONE),
            key=st.tuples(
                st.integers(0, 17) | st.just(NONE), st.integers(0, 255), st.integers(0, 9)
            ),
        )
        | st.binary(min_size=16, max_size=16),
        max_size=8,
    ),
    head=st.binary(max_size=16),
    count=st.none() | st.integers(0, 2**32 - 1),
    runs=st.lists(
        st.integers(RUN - 32, RUN + 160) | st.integers(0, 2**64 - 1), min_size=1, max_size=4
    ),
)
def test_whatever_stands_there_is_read_or_refused(
    rows: list[bytes], head: bytes, count: int | None, runs: list[int]
) -> None:
    data = run(*rows, count=count)
    declared = read(head + data[len(head) :], [RUN, *map(GuestVirtual, runs)])
    assert all(line.isprintable() for line in declared.refused)
    for found in declared.records:
        assert 0 <= found.site < 2**64
        assert 0 <= found.other < 2**64
        assert (found.register is not None) == (found.kind in INLINE)
        assert found.key is None or found.key.register not in (found.register, Register.RSP)
