"""Addresses carry their kind in their type.

An ``int`` is a size or a count; an address is one of these.  Arithmetic gives an ``int`` back, so
a changed address is wrapped again where it is made: ``GuestVirtual(site + 5)``.
"""

from typing import NewType

__all__ = ("GuestPhysical", "GuestVirtual", "HostVirtual")

GuestVirtual = NewType("GuestVirtual", int)
"""A kernel-virtual address of the guest, canonical, 0 .. 2**64 - 1."""

GuestPhysical = NewType("GuestPhysical", int)
"""An address in the guest's physical address space, as QEMU's ``memory`` address space sees it."""

HostVirtual = NewType("HostVirtual", int)
"""An address in the QEMU process."""
