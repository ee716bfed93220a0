"""Counter records: one for each site, none given twice."""

from optpolined.addresses import GuestVirtual
from optpolined.service.records import Records

A, B = GuestVirtual(0x1000), GuestVirtual(0x2000)


def test_a_site_keeps_its_record() -> None:
    records = Records([3, 4])
    assert records.of(A) == records.of(A) == 3
    assert records.of(B) == 4
    assert records.site(4) == B


def test_without_a_clean_record_a_site_has_none() -> None:
    assert Records([]).of(A) is None


def test_a_renewed_record_leaves_the_old_one_to_its_owner() -> None:
    records = Records([3, 4])
    records.of(A)
    assert records.renew(A) == 3
    assert records.of(A) == 4
    assert records.site(3) is None


def test_the_last_record_is_kept_rather_than_lost() -> None:
    records = Records([3])
    records.of(A)
    assert records.renew(A) is None
    assert records.of(A) == 3


def test_a_recycled_record_is_given_again() -> None:
    records = Records([3])
    records.of(A)
    records.recycle([9])
    assert records.of(B) == 9
