"""One CPU that executes a block, and what must be seen where it arrives."""

import struct
from dataclasses import dataclass, field

import unicorn
from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import Uc

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import HITS_OFFSET, scratch_register
from optpolined.codegen.forms import MAX_LEAVES
from optpolined.x86 import Register

PAGE = 0x1000
U64 = 1 << 64

STACK = 0xFFFFC90000100000
STACK_SIZE = 2 * PAGE
RSP = STACK + PAGE
GS_BASE = 0xFFFF88807FC00000
RECORD_SIZE = 64 + 8  # and the start of the next site's, which a carry must not reach
RECORD_ADDRESSES = (
    GS_BASE + 0x1F040,  # a percpu offset as of the first chunk
    GS_BASE - 0x10000FC0,  # one that fits a sign-extended imm32
    0xFFFF800000001040,  # one of which all eight bytes count
)

KEY_TABLE_SIZE = 4 * MAX_LEAVES + 16  # and 8 bytes of others before and after it
KEY_TABLE_ADDRESSES = (GS_BASE + 0x2F048, GS_BASE - 0x20000FB8, 0xFFFF800000101048)

# Fills what nothing else fills: unicorn translates ahead, up to a hlt.
HLT = b"\xf4"

ZERO_FLAG = 0x40
ALWAYS_ONE_FLAG = 0x02

UNICORN = {register: getattr(x86_const, f"UC_X86_REG_{register.name}") for register in Register}


@dataclass
class Arrival:
    """The machine at the first instruction outside of the code that was run."""

    address: int
    registers: dict[Register, int]
    stack: bytes
    record: bytes
    key_table: bytes


@dataclass
class Machine:
    """One CPU with a stack, a record and a key table, which runs until it leaves the code."""

    record_address: int = RECORD_ADDRESSES[0]
    key_table_address: int = KEY_TABLE_ADDRESSES[0]
    emulator: Uc = field(default_factory=lambda: Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64))
    mapped: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.range = range(0)
        self.arrived = -1
        # Without a TLB of its own, unicorn takes all but 52 bits of an address off.
        self.emulator.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
        self.map(STACK, STACK_SIZE)
        self.map(self.record_address, RECORD_SIZE)
        self.map(self.key_table_address - 8, KEY_TABLE_SIZE)
        self.emulator.reg_write(x86_const.UC_X86_REG_GS_BASE, GS_BASE)
        self.emulator.hook_add(unicorn.UC_HOOK_CODE, self._executes)

    @property
    def record(self) -> int:
        """The percpu offset of the record."""
        return (self.record_address - GS_BASE) % U64

    @property
    def key_table(self) -> int:
        """The percpu offset of the key table."""
        return (self.key_table_address - GS_BASE) % U64

    def map_layout(self, layout: "Layout", nr_targets: int = MAX_LEAVES) -> None:
        self.map(layout.learn_stub, 1)
        for target in layout.targets[:nr_targets]:
            self.map(target, 1)

    def map(self, address: int, size: int) -> None:
        for page in range(address & -PAGE, address + size, PAGE):
            if page not in self.mapped:
                self.emulator.mem_map(page, PAGE)
                self.emulator.mem_write(page, HLT * PAGE)
                self.mapped.add(page)

    def run(self, code: bytes, at: int, registers: dict[Register, int], flags: int) -> Arrival:
        self.map(at, len(code))
        self.emulator.mem_write(at, code)
        # Code that another run translated at the same place stays otherwise.
        self.emulator.ctl_remove_cache(at, at + len(code))
        self.range = range(at, at + len(code))
        self.emulator.mem_write(STACK, STACK_BYTES)
        self.emulator.mem_write(self.record_address, RECORD_BYTES)
        self.emulator.mem_write(self.key_table_address - 8, KEY_TABLE_BYTES)
        self.emulator.reg_write_batch(
            [(UNICORN[register], value) for register, value in registers.items()]
        )
        self.emulator.reg_write(x86_const.UC_X86_REG_EFLAGS, flags | ALWAYS_ONE_FLAG)
        self.arrived = -1
        self.emulator.emu_start(at, 0, count=200)
        return Arrival(
            self.arrived,
            dict(zip(Register, self.emulator.reg_read_batch([*UNICORN.values()]), strict=True)),
            bytes(self.emulator.mem_read(STACK, STACK_SIZE)),
            bytes(self.emulator.mem_read(self.record_address, RECORD_SIZE)),
            bytes(self.emulator.mem_read(self.key_table_address - 8, KEY_TABLE_SIZE)),
        )

    def _executes(self, _uc: Uc, address: int, _size: int, _data: object) -> None:
        if address not in self.range:
            self.arrived = address
            self.emulator.emu_stop()


STACK_BYTES = bytes(i * 7 % 251 for i in range(STACK_SIZE))
# The hits are about to wrap.
RECORD_BYTES = bytes(range(1, HITS_OFFSET + 1)) + b"\xff\xff\xff\xff" + b"next one"
KEY_TABLE_BYTES = bytes(i * 11 % 253 for i in range(KEY_TABLE_SIZE))
REGISTERS = {register: 0x0101010101010101 * (register + 1) for register in Register} | {
    Register.RSP: RSP
}


@dataclass(frozen=True)
class Layout:
    """Where a block stands, and what it can branch to."""

    at: GuestVirtual
    learn_stub: GuestVirtual
    targets: tuple[GuestVirtual, ...]


LAYOUTS = {
    "module area to kernel text": Layout(
        GuestVirtual(0xFFFFFFFFC0200020),
        GuestVirtual(0xFFFFFFFFC0100040),
        tuple(GuestVirtual(0xFFFFFFFF81000010 + i * 0x123450) for i in range(MAX_LEAVES)),
    ),
    "a rel8 away": Layout(
        GuestVirtual(0xFFFFFFFFC0200100),
        GuestVirtual(0xFFFFFFFFC02000F0),
        tuple(GuestVirtual(0xFFFFFFFFC02000E8 - i * 8) for i in range(MAX_LEAVES)),
    ),
    "in user space": Layout(
        GuestVirtual(0x7FFE0000),
        GuestVirtual(0x10040),
        tuple(GuestVirtual(0x7FFFFFFF - i * 0x123457) for i in range(MAX_LEAVES)),
    ),
    "forwards over 2 GiB": Layout(
        GuestVirtual(0xFFFFFFFF80000000),
        GuestVirtual(0xFFFFFFFFFFFFC000),
        tuple(GuestVirtual(0xFFFFFFFFFFFFD000 + i * 0x10) for i in range(MAX_LEAVES)),
    ),
    "backwards over 2 GiB": Layout(
        GuestVirtual(0xFFFFFFFFFFFFC000),
        GuestVirtual(0xFFFFFFFF80000800),
        tuple(GuestVirtual(0xFFFFFFFF80000000 + i * 0x10) for i in range(MAX_LEAVES)),
    ),
}


def misses(layout: Layout, targets: tuple[GuestVirtual, ...]) -> list[int]:
    """Functions that are no target, and values of which only some bits are a target's."""
    strangers = [0xFFFFFFFFA0001000, 0, U64 - 1]
    for target in {*targets[:1], *targets[-1:]}:
        strangers += [target % (1 << 32), target ^ (1 << 32), target ^ (1 << 63), target ^ 1]
    return [value for value in strangers if value not in layout.targets]


def expect_hit(
    arrival: Arrival, entry: dict[Register, int], target: int, *, counts: bool = False
) -> None:
    assert arrival.address == target
    assert arrival.registers == entry
    assert arrival.stack[PAGE:] == STACK_BYTES[PAGE:]
    hits = struct.pack("<I", 0 if counts else 0xFFFFFFFF)
    assert arrival.record == RECORD_BYTES[:HITS_OFFSET] + hits + RECORD_BYTES[HITS_OFFSET + 4 :]
    assert arrival.key_table == KEY_TABLE_BYTES


def expect_miss(
    arrival: Arrival,
    entry: dict[Register, int],
    layout: Layout,
    register: Register,
    record: int,
    *,
    key_table: bytes = KEY_TABLE_BYTES,
) -> None:
    scratch = scratch_register(register)
    assert arrival.address == layout.learn_stub
    assert arrival.registers == entry | {scratch: record, Register.RSP: RSP - 8}
    assert arrival.stack[PAGE - 8 : PAGE] == struct.pack("<Q", entry[scratch])
    assert arrival.stack[PAGE:] == STACK_BYTES[PAGE:]
    assert arrival.record == RECORD_BYTES
    assert arrival.key_table == key_table
