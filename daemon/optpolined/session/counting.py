"""What the guest's counters say of each site."""

from collections.abc import Iterable

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module.abi import RECORD_SLOTS
from optpolined.kernel.module.counters import (
    Counters,
    Difference,
    RecordGain,
    difference,
    each_cpu,
    set_cleared,
    zero_records,
)
from optpolined.learning.strategy import SiteEpoch
from optpolined.patching.counter_records import RecordAllocator, key_table_records
from optpolined.patching.record_clearing import clear
from optpolined.session.access import GuestAccess
from optpolined.session.key_table import read_key_table
from optpolined.session.survey import Survey

__all__ = ("Counts", "SiteCounters")

Counts = dict[GuestVirtual, SiteEpoch]


class SiteCounters:
    """The counters of the guest by site: ``records`` says which record is whose."""

    def __init__(self, access: GuestAccess, survey: Survey) -> None:
        """Clear the records that an earlier daemon used; its code may still run in them.

        :raise RequestTimeoutError: no grace period passed, which is needed for that.
        :raise KernelError: the counters make no sense.
        :raise QemuError: QEMU failed.
        """
        self._access = access
        self._survey = survey
        self.counters = Counters.from_header(access.space.read, access.header)
        self._int3_before = self.counters.int3().hits
        self.records = RecordAllocator(self._clean_records())
        self._last = self.counters.snapshot(0)

    def _clean_records(self) -> list[int]:
        untouched = zero_records(self.counters.snapshot(self.counters.capacity))
        dirty = sorted(set(range(self.counters.capacity)) - set(untouched))
        if dirty or any(self._access.entries):
            self._access.pass_grace()
        return [*untouched, *self._clear(dirty)]

    def _clear(self, records: list[int]) -> list[int]:
        return clear(records, self.counters, self._access.space, self._access.transport)

    @property
    def int3_hits(self) -> int:
        """Calls that met a breakpoint of ours since attach, as the guest counted them."""
        return self.counters.int3().hits - self._int3_before

    def start_anew(self) -> None:
        """Count from now on: what was counted until now belongs to forms that have changed."""
        self._last = self.counters.snapshot(self.records.extent)

    def count(self, by_cpu: dict[int, Counts] | None = None) -> Counts:
        """Return what each site gained since the last count or change; no stop is needed.

        :param by_cpu: Filled with the same for each CPU, if given.
        :raise TranslationError: the counters are not mapped any more.
        """
        last, self._last = self._last, self.counters.snapshot(self.records.extent)
        if by_cpu is not None:
            by_cpu.update(enumerate(map(self._by_site, each_cpu(last, self._last))))
        return self._by_site(difference(last, self._last))

    def _by_site(self, gained: Difference) -> Counts:
        of = ((self.records.site(record), gain) for record, gain in gained.by_record().items())
        return {site: self._epoch(gain) for site, gain in of if site is not None}

    def _epoch(self, gain: RecordGain) -> SiteEpoch:
        """Only functions that the guest's symbols name, and not our own, may become targets."""
        known = {target: count for target, count in gain.calls.items() if self.is_target(target)}
        unknown = sum(gain.calls.values()) - sum(known.values())
        return SiteEpoch(known, gain.other + unknown, gain.hits)

    def is_target(self, address: GuestVirtual) -> bool:
        """Return whether a site may call ``address``: a function begins there, not our own."""
        header = self._access.header
        own = 0 <= address - header.module_text < header.module_text_size
        return not own and self._survey.symbols.is_function_entry(address)

    def key_targets(self, site: GuestVirtual) -> dict[int, GuestVirtual]:
        """Return the target that each index of the site's key was last seen with.

        Empty where the site has no key.  Where CPUs differ, what most of them saw counts.  A wrong
        target costs time, never correctness.

        :raise TranslationError: the counters are not mapped any more.
        """
        key = self._survey.inventory.eligible[site].key
        table = None if key is None else self.records.key_table(site, key_table_records(key))
        if key is None or table is None:
            return {}
        records = range(table, table + key_table_records(key))
        return read_key_table(key, records, self.counters, self._access.space, self.is_target)

    def is_full(self, site: GuestVirtual) -> bool:
        """Return whether a CPU's record of ``site`` has no slot left for a new target."""
        record = self.records.of(site)
        if record is None or record >= self._last.shape[1]:
            return False
        targets = self._last[:, record]["slots"]["target"]
        return bool((targets != 0).sum(axis=1).max() == RECORD_SLOTS)

    def reuse(self, stale: Iterable[int]) -> None:
        """Clear records that nothing counts into any more, and let sites have them again.

        :raise TranslationError: the counters are not mapped any more.
        :raise QemuError: QEMU failed.
        """
        cleared = self._clear(list(stale))
        set_cleared(self._last, (record for record in cleared if record < self._last.shape[1]))
        self.records.recycle(cleared)
