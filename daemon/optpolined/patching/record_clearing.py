"""Zeroes counter records, so that another site can use them."""

from collections.abc import Sequence

from optpolined.kernel.module.counters import RECORD_DTYPE, Counters
from optpolined.kernel.paging import AddressSpace
from optpolined.patching.protocol.steps import Write
from optpolined.patching.protocol.transport import Transport, Written

__all__ = ("clear",)


def clear(
    records: Sequence[int], counters: Counters, space: AddressSpace, transport: Transport
) -> list[int]:
    """Zero records that nothing counts into; return those that are zero now.

    :raise TranslationError: the counters are not mapped any more.
    :raise QemuError: QEMU failed.
    """
    writes = []
    owners = []
    with space.snapshot() as pages:
        for record in records:
            for address in counters.copies(record):
                found = pages.read(address, RECORD_DTYPE.itemsize)
                if any(found):
                    writes.append(Write(address, found, bytes(RECORD_DTYPE.itemsize)))
                    owners.append(record)
    outcomes = transport.write(writes) if writes else []
    busy = {
        owner
        for owner, outcome in zip(owners, outcomes, strict=True)
        if not isinstance(outcome, Written)
    }
    return [record for record in records if record not in busy]
