r"""What QEMU's human monitor prints, parsed: one function for each command.

The texts are made for people; they are not an interface.  So each form is dated, and read with
tolerance: for other spacing, line ends, letter case, further columns, and lines that are not known.
A text in which nothing is understood raises HmpFormatError, which says which command printed it.

The forms are those of QEMU 7.2, 10.0 and 11.1, seen in November 2026; lines end in ``\r\n``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from optpolined.addresses import GuestPhysical, HostVirtual
from optpolined.qemu.errors import HmpFormatError

__all__ = ("ControlRegisters", "parse_control_registers", "parse_flat_view", "parse_host_address")

_ADDRESS = r"(?:0x)?([0-9a-f]{1,16})"
_RANGE = re.compile(rf"\s*{_ADDRESS}\s*-\s*{_ADDRESS}\s+\(([^)]*)\)", re.IGNORECASE)
_FLAT_VIEW = re.compile(r"^[ \t]*FlatView\b", re.MULTILINE)
_SYSTEM_MEMORY = re.compile(r'^[ \t]*AS[ \t]+"memory"', re.MULTILINE)

_HOST_ADDRESS = re.compile(r"\bHost virtual address\b.*\bis\s+0x([0-9a-f]{1,16})\b", re.IGNORECASE)
_NO_RAM = re.compile(
    r"\bno memory is mapped\b|\bnot RAM\b|\bmemory region\b.*\bexceeded\b", re.IGNORECASE
)

_VCPU = re.compile(r"^[ \t]*CPU[ \t]*#", re.MULTILINE)
_REGISTER = re.compile(r"\b(CR0|CR3|CR4|EFER)\s*=\s*(?:0x)?([0-9a-f]{1,16})\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ControlRegisters:
    """The registers of one vCPU that say how it pages; EFER is an MSR."""

    cr0: int
    cr3: int
    cr4: int
    efer: int


def parse_flat_view(text: str) -> list[tuple[GuestPhysical, int]]:
    """Parse ``info mtree -f``: start and size of each ``ram`` range, in the order printed.

    The ranges are those of the address space ``memory``, which is what vCPUs see.  Left out are
    ``rom``, ``i/o``, ``ramd`` (device memory), ``nv-ram`` and the like.  As of QEMU 11.1
    (mtree_print_flatview(), in 7.2 in softmmu/memory.c, later in system/memory.c)::

        FlatView #1
         AS "memory", root: system
         AS "cpu-memory-0", root: system
         Root memory region: system
          0000000000000000-00000000000bffff (prio 0, ram): pc.ram
          00000000000c0000-00000000000dffff (prio 1, rom): pc.rom
          0000000100000000-000000019fffffff (prio 0, ram): pc.ram @0000000080000000 KVM

    :raise HmpFormatError: the address space is not named.
    """
    text = _with_plain_line_ends(text)
    for view in _FLAT_VIEW.split(text)[1:]:
        if _SYSTEM_MEMORY.search(view):
            return list(_ram_of(view))
    raise HmpFormatError("info mtree -f", 'no FlatView of the address space "memory"')


def parse_host_address(text: str) -> HostVirtual | None:
    """Parse ``gpa2hva ADDRESS``: where the QEMU process has a guest-physical address.

    ``None`` where that is not RAM.  As of QEMU 11.1 (hmp_gpa2hva(), in 7.2 in
    monitor/misc.c, later in monitor/hmp-cmds-target.c), one of::

        Host virtual address for 0x1000 (pc.ram) is 0x7f5c1ac01000
        No memory is mapped at address 0x1000
        Memory at address 0x1000 is not RAM

    :raise HmpFormatError: it is none of these.
    """
    line = " ".join(text.split())
    if found := _HOST_ADDRESS.search(line):
        return HostVirtual(int(found[1], 16))
    if _NO_RAM.search(line):
        return None
    raise HmpFormatError("gpa2hva", "neither an address, nor that there is no RAM")


def parse_control_registers(text: str) -> list[ControlRegisters]:
    """Parse ``info registers -a`` of an x86 guest: one entry for each vCPU, in the order printed.

    A vCPU without all of the registers is left out.  As of QEMU 11.1 (target/i386/cpu-dump.c,
    x86_cpu_dump_state()), among much else::

        CPU#0
        CR0=80050033 CR2=00007f5c1ac2e000 CR3=0000000003a0a001 CR4=000006f0
        EFER=0000000000000d01

    :raise HmpFormatError: there is no such vCPU.
    """
    found = []
    for vcpu in _VCPU.split(_with_plain_line_ends(text))[1:]:
        values = {name.lower(): int(value, 16) for name, value in _REGISTER.findall(vcpu)}
        if len(values) == len(ControlRegisters.__slots__):
            found.append(ControlRegisters(**values))
    if not found:
        raise HmpFormatError("info registers -a", "no vCPU with CR0, CR3, CR4 and EFER")
    return found


def _ram_of(view: str) -> Iterator[tuple[GuestPhysical, int]]:
    for line in view.splitlines():
        if found := _RANGE.match(line):
            start, last = int(found[1], 16), int(found[2], 16)
            kinds = (word.strip().lower() for word in found[3].split(","))
            if "ram" in kinds and start <= last:
                yield GuestPhysical(start), last + 1 - start


def _with_plain_line_ends(text: str) -> str:
    return text.replace("\r", "\n")
