"""Counter records: each site has its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Key
from optpolined.kernel.module.abi import RECORDS_PER_CHUNK
from optpolined.kernel.module.counters import RECORD_DTYPE
from optpolined.patching.counter_records import RecordAllocator, key_table_records
from optpolined.x86 import Register

A, B = GuestVirtual(0x1000), GuestVirtual(0x2000)


def test_a_site_keeps_its_record() -> None:
    records = RecordAllocator([3, 4])
    assert records.of(A) == records.of(A) == 3
    assert records.of(B) == 4
    assert records.site(4) == B


def test_without_a_clean_record_a_site_has_none() -> None:
    assert RecordAllocator([]).of(A) is None


def test_a_renewed_record_leaves_the_old_one_to_its_owner() -> None:
    records = RecordAllocator([3, 4])
    records.of(A)
    assert records.renew(A) == 3
    assert records.of(A) == 4
    assert records.site(3) is None


def test_the_last_record_is_kept_rather_than_lost() -> None:
    records = RecordAllocator([3])
    records.of(A)
    assert records.renew(A) is None
    assert records.of(A) == 3


def test_a_recycled_record_is_given_again() -> None:
    records = RecordAllocator([3])
    records.of(A)
    records.recycle([9])
    assert records.of(B) == 9


def test_a_key_table_is_a_row_that_is_aligned_to_its_number() -> None:
    records = RecordAllocator([1, 2, 3, 5, 6, 7, 8, 9, 10, 11])
    assert records.key_table(A, 4) == 8
    assert records.key_table(A, 4) == 8, "a site keeps it"
    assert records.key_table(B, 2) == 2
    assert [records.of(GuestVirtual(site)) for site in range(5)] == [1, 5, 6, 7, None]


def test_without_such_a_row_a_site_has_no_key_table() -> None:
    records = RecordAllocator([1, 2, 3, 5, 6])
    assert records.key_table(A, 4) is None
    assert records.key_table(A, 2) == 2, "a smaller one there is"
    assert records.of(A) == 1


def test_the_key_table_of_a_site_that_has_gone_is_recycled_with_its_record() -> None:
    records = RecordAllocator(range(8))
    assert records.of(A) == 0
    assert records.key_table(A, 4) == 4
    assert records.release_site(A) == [4, 5, 6, 7, 0]
    assert records.site(0) is None
    assert records.key_table(B, 4) is None, "not before they are cleared"
    records.recycle([4, 5, 6, 7, 0])
    assert records.key_table(B, 4) == 0


def test_a_key_table_counts_for_no_site_and_needs_no_window() -> None:
    records = RecordAllocator(range(4))
    assert records.key_table(A, 4) == 0
    assert records.site(0) is None
    assert records.extent == 0


@pytest.mark.parametrize(("bits", "count"), [(1, 1), (3, 1), (4, 1), (5, 2), (6, 4)])
def test_a_key_table_has_a_slot_for_each_index(bits: int, count: int) -> None:
    assert key_table_records(Key(Register.RDI, 0, bits)) == count
    assert count * RECORD_DTYPE.itemsize >= 4 << bits


@given(
    st.sets(st.integers(0, 63)),
    st.lists(
        st.tuples(
            st.integers(0, 9).map(GuestVirtual), st.sampled_from(["of", "renew", "forget", 1, 2, 4])
        )
    ),
)
def test_no_record_is_given_twice(
    clean: set[int], wishes: list[tuple[GuestVirtual, str | int]]
) -> None:
    """Each belongs to one site, as its record or in its key table, or is free."""
    records = RecordAllocator(clean)
    own: dict[GuestVirtual, int] = {}
    tables: dict[GuestVirtual, range] = {}
    stale: list[int] = []
    for site, wish in wishes:
        if wish == "of":
            record = records.of(site)
            if record is not None:
                own[site] = record
        elif wish == "renew":
            old = records.renew(site)
            if old is not None:
                stale.append(old)
                own[site] = records.of(site) or 0
        elif wish == "forget":
            assert sorted(records.release_site(site)) == sorted(
                [*tables.pop(site, ()), *([own.pop(site)] if site in own else [])]
            )
        elif isinstance(wish, int) and site not in tables:
            first = records.key_table(site, wish)
            if first is not None:
                tables[site] = range(first, first + wish)
                assert first % wish == 0
                assert first // RECORDS_PER_CHUNK == (first + wish - 1) // RECORDS_PER_CHUNK
        given_out = [*own.values(), *stale, *(record for row in tables.values() for record in row)]
        assert len(given_out) == len(set(given_out))
        assert set(given_out) <= clean
        assert {records.site(record) for record in own.values()} == set(own)
