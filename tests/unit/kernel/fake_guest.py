"""A guest made of bytes: sparse RAM, page tables, and the module's header in them."""

import ctypes
import struct
from dataclasses import dataclass, field

from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.kernel.module import abi
from optpolined.kernel.paging import AddressSpace
from optpolined.qemu.errors import OutOfRamError
from optpolined.x86 import THUNK_REGISTERS

PRESENT, WRITABLE, PAGE, NO_EXECUTE = 1 << 0, 1 << 1, 1 << 7, 1 << 63
PAGE_SIZE = 4096

KERNEL_TEXT = GuestVirtual(0xFFFF_FFFF_8100_0000)
HEADER = GuestVirtual(0xFFFF_FFFF_C040_3000)
MODULE_TEXT = GuestVirtual(0xFFFF_FFFF_C010_0000)
TABLES = GuestVirtual(0xFFFF_8880_0010_0000)


class FakeMemory:
    """RAM from 0 on; what was never written is zero."""

    def __init__(self, size: int = 64 << 20) -> None:
        self.size = size
        self.reads = 0
        self._pages: dict[int, bytearray] = {}

    def read(self, address: GuestPhysical, size: int) -> bytes:
        self.reads += 1
        if address < 0 or size < 0 or address + size > self.size:
            raise OutOfRamError(address, size)
        data = bytearray()
        while len(data) < size:
            page, offset = divmod(address + len(data), PAGE_SIZE)
            here = min(size - len(data), PAGE_SIZE - offset)
            data += self._pages.get(page, bytes(PAGE_SIZE))[offset : offset + here]
        return bytes(data)

    def write(self, address: int, data: bytes) -> None:
        done = 0
        while done < len(data):
            page, offset = divmod(address + done, PAGE_SIZE)
            here = data[done : done + PAGE_SIZE - offset]
            self._pages.setdefault(page, bytearray(PAGE_SIZE))[offset : offset + len(here)] = here
            done += len(here)


@dataclass
class PageTables:
    """Tables of their own, built in ``memory`` from ``root`` on."""

    memory: FakeMemory
    root: int = 0x10_0000
    levels: int = 4
    _next: int = field(init=False)

    def __post_init__(self) -> None:
        # The page after the root is that of user mode, with page-table isolation.
        self._next = self.root + 2 * PAGE_SIZE

    @property
    def space(self) -> AddressSpace:
        return AddressSpace(self.memory, GuestPhysical(self.root), self.levels)

    def entry(self, virtual: int, level: int = 1) -> int:
        """Where the entry for ``virtual`` at ``level`` is; makes the tables above it."""
        table = self.root
        for here in range(self.levels, 0, -1):
            place = table + 8 * ((virtual >> (12 + 9 * (here - 1))) & 511)
            if here == level:
                return place
            value = int.from_bytes(self.memory.read(GuestPhysical(place), 8), "little")
            if not value & PRESENT:
                value = self._next | PRESENT | WRITABLE
                self._next += PAGE_SIZE
                self.memory.write(place, value.to_bytes(8, "little"))
            table = value & 0x000F_FFFF_FFFF_F000
        raise AssertionError(level)

    def map(self, virtual: int, physical: int, flags: int = WRITABLE, level: int = 1) -> None:
        value = physical | PRESENT | flags | (PAGE if level > 1 else 0)
        self.memory.write(self.entry(virtual, level), value.to_bytes(8, "little"))

    def map_range(self, virtual: int, physical: int, size: int, flags: int = WRITABLE) -> None:
        for offset in range(0, size, PAGE_SIZE):
            self.map(virtual + offset, physical + offset, flags)

    def write(self, virtual: int, data: bytes) -> None:
        done = 0
        for physical, size in self.space.pieces(GuestVirtual(virtual), len(data)):
            self.memory.write(physical, data[done : done + size])
            done += size


def registers(*roots: int, cr4: int = 0x6F0, cr0: int = 0x8005_0033, efer: int = 0xD01) -> str:
    """As QEMU 7.2 answers ``info registers -a``, without most of it."""
    return "".join(
        f"\nCPU#{number}\n"
        f"RAX=ffffffff81c114f0 RBX=0000000000000000 RCX=0000000000000001 RDX=4000000000000000\n"
        f"CR0={cr0:08x} CR2=00007f5c1ac2e000 CR3={root:016x} CR4={cr4:08x}\n"
        f"DR6=00000000ffff0ff0 DR7=0000000000000400\nEFER={efer:016x}\n"
        for number, root in enumerate(roots)
    )


def raw_header(address: int = HEADER) -> abi.HeaderLayout:
    """A header with nothing wrong."""
    raw = abi.HeaderLayout(
        magic=(ctypes.c_uint8 * 16)(*abi.MAGIC),
        abi_version=abi.ABI_VERSION,
        header_size=ctypes.sizeof(abi.HeaderLayout),
        self=address,
        boot_nonce=0x1122_3344_5566_7788,
        vmcoreinfo_paddr=0x8000,
        vmcoreinfo_size=4096,
        module_text=MODULE_TEXT,
        module_text_size=0x20_3000,
        arena=MODULE_TEXT + 0x3000,
        arena_size=0x20_0000,
        poke_table=TABLES,
        poke_order=10,
        poke_entry_size=32,
        per_cpu_offset=0xFFFF_FFFF_8290_0000,
        nr_cpu_ids=2,
        nr_record_chunks=4,
        record_chunks=TABLES + 0x1_0000,
        records_per_chunk=512,
        record_size=64,
        cpu_stats=0x3_4000,
        census_chunks=TABLES + 0x1_1000,
        nr_census_chunks=4,
        census_chunk_slots=2048,
        census_other=0x3_5000,
        modules=TABLES + 0x2_0000,
        modules_capacity=64,
    )
    for register in THUNK_REGISTERS:
        raw.thunk[register] = 0xFFFF_FFFF_8200_0000 + 32 * register
        raw.learn_stub[register] = MODULE_TEXT + 128 * register
        raw.census_stub[register] = MODULE_TEXT + 0x1000 + 256 * register
        raw.thunk_head[register] = (ctypes.c_uint8 * 8)(0xE8, 7)
    return raw


def note(text: bytes) -> bytes:
    """``text`` as the VMCOREINFO note."""
    return struct.pack("<III12s", 11, len(text), 0, b"VMCOREINFO\0\0") + text


class FakeGuest:
    """A booted kernel that has loaded our module.

    The kernel's own root is 0x100000; ``process`` is another one that maps the same.
    """

    def __init__(self, levels: int = 4) -> None:
        self.memory = FakeMemory()
        self.kernel = PageTables(self.memory, 0x10_0000, levels)
        self.process = PageTables(self.memory, 0x20_0000, levels)
        self.raw = raw_header()
        for tables in (self.kernel, self.process):
            tables.map(HEADER, 0x40_0000, WRITABLE | NO_EXECUTE)
            tables.map_range(TABLES, 0x50_0000, 0x3_0000)
            tables.map_range(MODULE_TEXT, 0x60_0000, 0x3000, 0)
        self.text = (
            b"OSRELEASE=6.1.0-56-cloud-amd64\nPAGESIZE=4096\n"
            b"SYMBOL(swapper_pg_dir)=ffffffff82610000\nNUMBER(phys_base)=-38862848\n"
            b"NUMBER(pgtable_l5_enabled)=%d\n" % (levels == 5)
        )
        assert self.kernel.root == 0x261_0000 - 38862848
        self.publish()

    def publish(self) -> None:
        """Write the header and the note anew."""
        self.memory.write(0x40_0000, bytes(self.raw))
        self.memory.write(0x8000, note(self.text))

    @property
    def space(self) -> AddressSpace:
        return self.kernel.space
