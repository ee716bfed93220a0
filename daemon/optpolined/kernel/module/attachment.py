"""From the vCPUs' registers to the module's header and the kernel's own page tables.

1. Any vCPU with paging and long mode on has a root in CR3 that maps the modules, in kernel mode at
   least.  With page-table isolation, a vCPU in user mode has another root 4 KiB above the kernel's
   (bit 12 of CR3 set): so each raw root is followed by the one with bit 12 cleared.
2. One of the module area's pages carries the magic and its own address.  False magics exist: the
   module's file in the page cache, the string constant in the module.
3. The header leads to VMCOREINFO, and VMCOREINFO to the kernel's own root.  From there on no
   process's root is used, because it is freed with its process.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.kernel.errors import (
    HeaderError,
    ModuleMissingError,
    PagingOffError,
    TranslationError,
    VmcoreinfoError,
)
from optpolined.kernel.module import abi
from optpolined.kernel.module.header import Header, HeaderStatus, read_header, read_status
from optpolined.kernel.paging import ADDRESS_MASK, PAGE_SIZE, AddressSpace
from optpolined.kernel.vmcoreinfo import Vmcoreinfo, read_vmcoreinfo
from optpolined.qemu.errors import OutOfRamError
from optpolined.qemu.hmp import parse_control_registers
from optpolined.qemu.memory import PhysicalMemory

__all__ = (
    "Attachment",
    "Header",
    "HeaderStatus",
    "Root",
    "attach",
    "find_header",
    "read_status",
    "roots",
)

# MODULES_VADDR .. MODULES_END with CONFIG_RANDOMIZE_BASE, arch/x86/include/asm/pgtable_64_types.h
_MODULES_START = GuestVirtual(0xFFFF_FFFF_C000_0000)
_MODULES_END = GuestVirtual(0xFFFF_FFFF_FF00_0000)

_CR0_PG = 1 << 31
_CR4_LA57 = 1 << 12
_EFER_LMA = 1 << 10
_USER_ROOT = 1 << 12  # PTI_USER_PGTABLE_BIT

_ROOTS_MAX = 32  # one of the first two works, unless the guest wastes our time
_PAGES_MAX = 400_000  # in all; the whole area has 258,048, and a guest with all modules 40,000
_PREFIX_SIZE = abi.offset_of(abi.HeaderLayout, "self") + 8


@dataclass(frozen=True, slots=True)
class Root:
    """Where a vCPU's page tables begin, and of how many levels they are."""

    address: GuestPhysical
    levels: int


@dataclass(frozen=True, slots=True)
class Attachment:
    """A guest that carries our module.  ``space`` stands on the kernel's own page tables."""

    header: Header
    space: AddressSpace
    vmcoreinfo: Vmcoreinfo


def attach(memory: PhysicalMemory, registers: str) -> Attachment:
    """Find the module and the kernel in a running guest, by reading alone.

    :param registers: what HMP ``info registers -a`` answered.
    :raise PagingOffError: no vCPU runs a 64-bit kernel yet.
    :raise ModuleMissingError: the module is not loaded.
    :raise AbiMismatchError: the module is of another version.
    :raise HeaderError, VmcoreinfoError: what the module published makes no sense.
    :raise QemuError: the guest's memory cannot be read at all.
    """
    header = find_header(memory, registers)
    vmcoreinfo = read_vmcoreinfo(memory, header.vmcoreinfo, header.vmcoreinfo_size)
    space = AddressSpace(memory, vmcoreinfo.root, vmcoreinfo.levels)
    try:
        again = read_header(space, header.address)
    except (HeaderError, TranslationError) as error:
        text = f"the page tables that VMCOREINFO names do not map the module: {error}"
        raise VmcoreinfoError(text) from error
    return Attachment(again, space, vmcoreinfo)


def find_header(memory: PhysicalMemory, registers: str) -> Header:
    """Find the module's header; parameters and errors are those of :func:`attach`."""
    candidates = roots(registers)
    if not candidates:
        raise PagingOffError
    for space, virtual, physical in islice(_pages(memory, candidates), _PAGES_MAX):
        if _is_named(memory, virtual, physical):
            try:
                return read_header(space, virtual)
            except TranslationError:  # unloaded, or its root's process gone, since we looked
                continue
    raise ModuleMissingError


def roots(registers: str) -> list[Root]:
    """Return the roots to try, in this order, from the text of HMP ``info registers -a``."""
    found: dict[Root, None] = {}
    for vcpu in parse_control_registers(registers):
        if not (vcpu.cr0 & _CR0_PG and vcpu.efer & _EFER_LMA):
            continue
        levels = 5 if vcpu.cr4 & _CR4_LA57 else 4
        root = vcpu.cr3 & ADDRESS_MASK
        found[Root(GuestPhysical(root), levels)] = None
        found[Root(GuestPhysical(root & ~_USER_ROOT), levels)] = None
    return list(found)[:_ROOTS_MAX]


def _pages(
    memory: PhysicalMemory, candidates: Iterable[Root]
) -> Iterator[tuple[AddressSpace, GuestVirtual, GuestPhysical]]:
    """Yield each page of the module area that each root maps."""
    for root in candidates:
        space = AddressSpace(memory, root.address, root.levels)
        ranges = list(space.mapped(_MODULES_START, _MODULES_END))
        # The header is data, and most of the area is code.  Data first is four times as fast on a
        # guest with many modules.
        ranges.sort(key=lambda page: page.executable or not page.writable)
        for page in ranges:
            for offset in range(0, page.size, PAGE_SIZE):
                virtual, physical = page.start + offset, page.physical + offset
                yield space, GuestVirtual(virtual), GuestPhysical(physical)


def _is_named(memory: PhysicalMemory, virtual: GuestVirtual, physical: GuestPhysical) -> bool:
    """Return whether a page carries the magic and names its own address."""
    try:
        prefix = memory.read(physical, _PREFIX_SIZE)
    except OutOfRamError:
        return False
    own = int.from_bytes(prefix[-8:], "little")
    return prefix.startswith(abi.MAGIC) and own == virtual
