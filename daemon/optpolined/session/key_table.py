"""What the guest noted of a site's key: which target each index was last seen with."""

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Key
from optpolined.kernel.module.counters import RECORD_DTYPE, Counters, full_address
from optpolined.kernel.paging import AddressSpace

__all__ = ("read_key_table",)


def read_key_table(
    key: Key,
    records: Iterable[int],
    counters: Counters,
    space: AddressSpace,
    is_target: Callable[[GuestVirtual], bool],
) -> dict[int, GuestVirtual]:
    """The target of each index; where CPUs differ, what most of them saw.

    :param records: Of which the table is made, in order.
    :raise TranslationError: the counters are not mapped any more.
    """
    seen: dict[int, Counter[GuestVirtual]] = {}
    with space.snapshot() as pages:
        for place, record in enumerate(records):
            for address in counters.copies(record):
                slots = np.frombuffer(pages.read(address, RECORD_DTYPE.itemsize), "<u4").tolist()
                for index, low_half in enumerate(slots, place * len(slots)):
                    target = full_address(low_half)
                    if index < 1 << key.bits and is_target(target):
                        seen.setdefault(index, Counter())[target] += 1
    return {index: targets.most_common(1)[0][0] for index, targets in seen.items()}
