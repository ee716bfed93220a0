"""Which counter record belongs to which site, and when it may be used again.

A site that learns by its key has more records, side by side: its key table.

A record is cleared only when no block refers to it and a grace period has passed.  Then nothing
counts into it, so what is read is what the clearing write expects.
"""

from collections import deque
from collections.abc import Iterable

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Chain, Code, Form, Key, LearnKeys
from optpolined.kernel.module.counters import RECORD_DTYPE

__all__ = ("RecordAllocator", "counts_all", "key_table_records")

_SLOT_BYTES = 4


def key_table_records(key: Key) -> int:
    """Return how many records the key table of ``key`` takes: a power of two."""
    return max(1, (_SLOT_BYTES << key.bits) // RECORD_DTYPE.itemsize)


def counts_all(form: Form) -> bool:
    """Return whether a site of this form counts every call and needs slots for all targets."""
    return isinstance(form, LearnKeys) or (
        isinstance(form, Chain) and (form.counts_hits or not form.targets)
    )


class RecordAllocator:
    """Hands out the indices of ``clean`` records."""

    def __init__(self, clean: Iterable[int]) -> None:
        self._clean = deque(clean)
        self._of_site: dict[GuestVirtual, int] = {}
        self._site_of: dict[int, GuestVirtual] = {}
        self._key_tables: dict[GuestVirtual, range] = {}
        self._extent = 0

    def of(self, site: GuestVirtual) -> int | None:
        """Return the record of ``site``, the same one each time; ``None``: all are in use."""
        if site not in self._of_site:
            if not self._clean:
                return None
            self._bind(site, self._clean.popleft())
        return self._of_site[site]

    def of_block(self, site: GuestVirtual, form: Code) -> tuple[int, int | None] | None:
        """Return what a block of this form counts into: a record, and the first of its key table.

        The latter is ``None`` for a form without a key.  ``None`` for both: all are in use.
        """
        record = self.of(site)
        if record is None or not isinstance(form, LearnKeys):
            return None if record is None else (record, None)
        table = self.key_table(site, key_table_records(form.key))
        return None if table is None else (record, table)

    def renew(self, site: GuestVirtual) -> int | None:
        """Give ``site`` a clean record; return the old one, to be recycled after a grace period.

        Return ``None`` where no clean record is left: the site then keeps its own.
        """
        if not self._clean or site not in self._of_site:
            return None
        old = self._of_site[site]
        del self._site_of[old]
        self._bind(site, self._clean.popleft())
        return old

    def key_table(self, site: GuestVirtual, count: int) -> int | None:
        """Return the first of the ``count`` records in a row that are the site's key table.

        ``count`` is a power of two.  The records lie in one chunk, because they are aligned to
        their number.  Return ``None`` where no such row is clean.
        """
        if site not in self._key_tables:
            clean = set(self._clean)
            for first in sorted(record for record in clean if record % count == 0):
                if clean.issuperset(range(first, first + count)):
                    break
            else:
                return None
            table = range(first, first + count)
            self._clean = deque(record for record in self._clean if record not in table)
            self._key_tables[site] = table
        return self._key_tables[site].start

    def release_site(self, site: GuestVirtual) -> list[int]:
        """Take back the records of a site that has gone, to be recycled after a grace period."""
        records = list(self._key_tables.pop(site, ()))
        record = self._of_site.pop(site, None)
        if record is not None:
            del self._site_of[record]
            records.append(record)
        return records

    def recycle(self, records: Iterable[int]) -> None:
        """Make cleared records available again."""
        self._clean.extend(records)

    def site(self, record: int) -> GuestVirtual | None:
        """Return the site that counts into ``record`` now."""
        return self._site_of.get(record)

    @property
    def extent(self) -> int:
        """All records that ever belonged to a site are below this one."""
        return self._extent

    def _bind(self, site: GuestVirtual, record: int) -> None:
        self._of_site[site] = record
        self._site_of[record] = site
        self._extent = max(self._extent, record + 1)
