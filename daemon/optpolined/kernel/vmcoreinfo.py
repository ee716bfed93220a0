"""What the kernel says of itself in its VMCOREINFO note.

Layout: an ELF note (elf(5): u32 namesz, descsz, type; the name padded to 4 bytes; the description)
named VMCOREINFO, of type 0, whose description is lines of KEY=value
(Documentation/admin-guide/kdump/vmcoreinfo.rst in the kernel).
"""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.kernel.errors import VmcoreinfoError
from optpolined.kernel.paging import ADDRESS_MASK, PAGE_SIZE
from optpolined.qemu.errors import OutOfRamError
from optpolined.qemu.memory import PhysicalMemory

__all__ = ("NOTE_SIZE_MAX", "Vmcoreinfo", "parse_vmcoreinfo", "read_vmcoreinfo")

NOTE_SIZE_MAX: Final = 64 * 1024
"""Bytes; a kernel's is one page and a little."""

_NOTE = struct.Struct("<III12s")
_NAME = b"VMCOREINFO\0\0"
_KERNEL_MAP = 0xFFFF_FFFF_8000_0000  # __START_KERNEL_map, arch/x86/include/asm/page_64_types.h
_SYMBOL = re.compile(r"SYMBOL\((\w{1,128})\)=([0-9a-fA-F]{1,16})")
_NUMBER = re.compile(r"NUMBER\((\w{1,128})\)=(-?[0-9]{1,20})")
_OSRELEASE = re.compile(r"OSRELEASE=([\x21-\x7e]{1,64})")
_BUILD_ID = re.compile(rb"^BUILD-ID=([0-9a-f]{8,64})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Vmcoreinfo:
    """The parts of the note that attaching needs, and its whole text for drgn."""

    text: bytes
    osrelease: str
    symbols: Mapping[str, GuestVirtual]
    numbers: Mapping[str, int]

    @property
    def build_id(self) -> str:
        """The kernel's, in hexadecimal; empty where it does not tell (before 5.15)."""
        found = _BUILD_ID.search(self.text)
        return found[1].decode() if found else ""

    @property
    def levels(self) -> int:
        """Levels of the kernel's page tables."""
        return 5 if self.numbers.get("pgtable_l5_enabled", 0) else 4

    @property
    def root(self) -> GuestPhysical:
        """The kernel's own page tables, which outlive every process.

        :raise VmcoreinfoError: the note does not give it.
        """
        try:
            root = self.symbols["swapper_pg_dir"] - _KERNEL_MAP + self.numbers["phys_base"]
        except KeyError as error:
            raise VmcoreinfoError(f"the guest's VMCOREINFO lacks {error.args[0]}") from error
        if root % PAGE_SIZE or root & ADDRESS_MASK != root:
            raise VmcoreinfoError(f"the guest's VMCOREINFO puts swapper_pg_dir at {root:#x}")
        return GuestPhysical(root)


def read_vmcoreinfo(memory: PhysicalMemory, address: GuestPhysical, size: int) -> Vmcoreinfo:
    """Read the note at ``address``, of at most ``size`` bytes.

    :raise VmcoreinfoError: there is no such note.
    """
    try:
        note = memory.read(address, min(size, NOTE_SIZE_MAX))
    except OutOfRamError as error:
        raise VmcoreinfoError(f"the VMCOREINFO note at {address:#x} is not in RAM") from error
    if len(note) < _NOTE.size:
        raise VmcoreinfoError(f"a VMCOREINFO note of {len(note)} bytes is too short")
    name_size, text_size, kind, name = _NOTE.unpack_from(note)
    if (name_size, kind, name) != (11, 0, _NAME) or text_size > len(note) - _NOTE.size:
        raise VmcoreinfoError(f"there is no VMCOREINFO note at {address:#x}")
    return parse_vmcoreinfo(note[_NOTE.size : _NOTE.size + text_size].rstrip(b"\0"))


def parse_vmcoreinfo(text: bytes) -> Vmcoreinfo:
    """Read the note's description; lines that are not understood are passed over.

    :raise VmcoreinfoError: it does not name the kernel's release.
    """
    symbols: dict[str, GuestVirtual] = {}
    numbers: dict[str, int] = {}
    osrelease = ""
    for line in text.decode("ascii", "replace").split("\n"):
        if found := _SYMBOL.fullmatch(line):
            symbols[found[1]] = GuestVirtual(int(found[2], 16))
        elif found := _NUMBER.fullmatch(line):
            numbers[found[1]] = int(found[2])
        elif found := _OSRELEASE.fullmatch(line):
            osrelease = found[1]
    if not osrelease:
        raise VmcoreinfoError("the guest's VMCOREINFO does not name the kernel's release")
    return Vmcoreinfo(text, osrelease, symbols, numbers)
