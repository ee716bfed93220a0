"""Every block, executed: control arrives where the register says, and nothing else changes."""

import struct
from dataclasses import dataclass, field

import pytest
import unicorn
from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import Uc

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import HITS_OFFSET, Assembler, site_instruction
from optpolined.codegen.forms import Chain
from optpolined.x86 import THUNK_REGISTERS, Register

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


@dataclass
class Machine:
    """One CPU with a stack and a record, which runs until it leaves the code."""

    record_address: int = RECORD_ADDRESSES[0]
    emulator: Uc = field(default_factory=lambda: Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64))
    mapped: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.range = range(0)
        self.arrived = -1
        # Without a TLB of its own, unicorn takes all but 52 bits of an address off.
        self.emulator.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
        self.map(STACK, STACK_SIZE)
        self.map(self.record_address, RECORD_SIZE)
        self.emulator.reg_write(x86_const.UC_X86_REG_GS_BASE, GS_BASE)
        self.emulator.hook_add(unicorn.UC_HOOK_CODE, self._executes)

    def map(self, address: int, size: int) -> None:
        for page in range(address & -PAGE, address + size, PAGE):
            if page not in self.mapped:
                self.emulator.mem_map(page, PAGE)
                self.emulator.mem_write(page, HLT * PAGE)
                self.mapped.add(page)

    def run(self, code: bytes, at: int, registers: dict[Register, int], flags: int) -> Arrival:
        self.map(at, len(code))
        self.emulator.mem_write(at, code)
        self.range = range(at, at + len(code))
        self.emulator.mem_write(STACK, STACK_BYTES)
        self.emulator.mem_write(self.record_address, RECORD_BYTES)
        for register, value in registers.items():
            self.emulator.reg_write(UNICORN[register], value)
        self.emulator.reg_write(x86_const.UC_X86_REG_EFLAGS, flags | ALWAYS_ONE_FLAG)
        self.arrived = -1
        self.emulator.emu_start(at, 0, count=200)
        return Arrival(
            self.arrived,
            {register: self.emulator.reg_read(UNICORN[register]) for register in Register},
            bytes(self.emulator.mem_read(STACK, STACK_SIZE)),
            bytes(self.emulator.mem_read(self.record_address, RECORD_SIZE)),
        )

    def _executes(self, _uc: Uc, address: int, _size: int, _data: object) -> None:
        if address not in self.range:
            self.arrived = address
            self.emulator.emu_stop()


STACK_BYTES = bytes(i * 7 % 251 for i in range(STACK_SIZE))
# The hits are about to wrap.
RECORD_BYTES = bytes(range(1, HITS_OFFSET + 1)) + b"\xff\xff\xff\xff" + b"next one"
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
        tuple(GuestVirtual(0xFFFFFFFF81000010 + i * 0x123450) for i in range(16)),
    ),
    "a rel8 away": Layout(
        GuestVirtual(0xFFFFFFFFC0200100),
        GuestVirtual(0xFFFFFFFFC02000F0),
        tuple(GuestVirtual(0xFFFFFFFFC02000E8 - i * 8) for i in range(16)),
    ),
    "forwards over 2 GiB": Layout(
        GuestVirtual(0xFFFFFFFF80000000),
        GuestVirtual(0xFFFFFFFFFFFFC000),
        tuple(GuestVirtual(0xFFFFFFFFFFFFD000 + i * 0x10) for i in range(16)),
    ),
    "backwards over 2 GiB": Layout(
        GuestVirtual(0xFFFFFFFFFFFFC000),
        GuestVirtual(0xFFFFFFFF80000800),
        tuple(GuestVirtual(0xFFFFFFFF80000000 + i * 0x10) for i in range(16)),
    ),
}


def scratch_of(register: Register) -> Register:
    return Register.R10 if register is Register.R11 else Register.R11


def misses(layout: Layout, targets: tuple[GuestVirtual, ...]) -> list[int]:
    """Functions that are no target, and values of which only some bits are a target's."""
    strangers = [0xFFFFFFFFA0001000, 0, U64 - 1]
    for target in {*targets[:1], *targets[-1:]}:
        strangers += [target % (1 << 32), target ^ (1 << 32), target ^ (1 << 63), target ^ 1]
    return [value for value in strangers if value not in layout.targets]


def expect_hit(arrival: Arrival, entry: dict[Register, int], target: int, *, counts: bool) -> None:
    assert arrival.address == target
    assert arrival.registers == entry
    assert arrival.stack[PAGE:] == STACK_BYTES[PAGE:]
    hits = struct.pack("<I", 0 if counts else 0xFFFFFFFF)
    assert arrival.record == RECORD_BYTES[:HITS_OFFSET] + hits + RECORD_BYTES[HITS_OFFSET + 4 :]


def expect_miss(
    arrival: Arrival, entry: dict[Register, int], layout: Layout, register: Register, record: int
) -> None:
    scratch = scratch_of(register)
    assert arrival.address == layout.learn_stub
    assert arrival.registers == entry | {scratch: record, Register.RSP: RSP - 8}
    assert arrival.stack[PAGE - 8 : PAGE] == struct.pack("<Q", entry[scratch])
    assert arrival.stack[PAGE:] == STACK_BYTES[PAGE:]
    assert arrival.record == RECORD_BYTES


@pytest.fixture(scope="module")
def assembler() -> Assembler:
    return Assembler()


@pytest.mark.parametrize("counts", [False, True], ids=["plain", "counts hits"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("register", THUNK_REGISTERS, ids=lambda register: register.name)
def test_each_value_of_the_register_arrives(
    assembler: Assembler, register: Register, layout: Layout, counts: bool
) -> None:
    for number, nr_targets in enumerate((1, 2, 3, 4, 8, 16) if counts else (0, 1, 2, 3, 4, 8, 16)):
        machine = Machine(RECORD_ADDRESSES[number % len(RECORD_ADDRESSES)])
        machine.map(layout.learn_stub, 1)
        for target in layout.targets:
            machine.map(target, 1)
        record = (machine.record_address - GS_BASE) % U64
        form = Chain(layout.targets[:nr_targets], counts)
        code = assembler.assemble(
            form, register=register, at=layout.at, record=record, learn_stub=layout.learn_stub
        )

        for target in form.targets:
            entry = REGISTERS | {register: target}
            expect_hit(machine.run(code, layout.at, entry, 0), entry, target, counts=counts)
        others = list(layout.targets[nr_targets:])
        for value in misses(layout, form.targets) + others:
            entry = REGISTERS | {register: value}
            arrival = machine.run(code, layout.at, entry, ZERO_FLAG)
            expect_miss(arrival, entry, layout, register, record)


@pytest.mark.parametrize("prefix", [b"", b"\x2e"], ids=["5 bytes", "6 bytes"])
@pytest.mark.parametrize("target", [0xFFFFFFFF81000040, 0xFFFFFFFFC0200040, 0xFFFFFFFFFFFFD000])
@pytest.mark.parametrize("opcode", [0xE8, 0xE9], ids=["call", "jmp"])
def test_a_site_goes_to_its_target(opcode: int, target: int, prefix: bytes) -> None:
    site = GuestVirtual(0xFFFFFFFF81234567)
    original = prefix + bytes((opcode, 0, 0, 0, 0))
    code = site_instruction(original, site, GuestVirtual(target))
    machine = Machine()
    machine.map(target, 1)
    arrival = machine.run(code, site, REGISTERS, 0)
    assert arrival.address == target
    if opcode == 0xE8:
        assert arrival.registers == REGISTERS | {Register.RSP: RSP - 8}
        assert arrival.stack[PAGE - 8 : PAGE] == struct.pack("<Q", site + len(original))
    else:
        assert arrival.registers == REGISTERS
    assert arrival.stack[PAGE:] == STACK_BYTES[PAGE:]
