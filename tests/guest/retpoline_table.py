"""The kernel's own table of retpoline sites, ``.retpoline_sites`` (objtool makes it)."""

import numpy as np

__all__ = ("sites_in",)


def sites_in(table: bytes, address: int) -> set[int]:
    """Return the sites in the ``table`` at ``address``: each s32 is relative to itself."""
    offsets = np.frombuffer(table, "<i4").tolist()
    return {address + 4 * index + offset for index, offset in enumerate(offsets)}
