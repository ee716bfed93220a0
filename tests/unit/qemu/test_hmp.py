"""The human monitor's texts, as QEMU prints them and with what a later QEMU may add."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.qemu.errors import HmpFormatError, MonitorError
from optpolined.qemu.hmp import (
    ControlRegisters,
    parse_control_registers,
    parse_flat_view,
    parse_host_address,
)

# "info mtree -f" of QEMU 7.2 to 11.1, q35, without most of the I/O
FLAT_VIEW = """FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, ram): not-memory

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-00000000000bffff (prio 0, ram): pc.ram
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom
  00000000fd000000-00000000fdffffff (prio 1, ramd): vfio
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  0000000100000000-000000019fffffff (prio 0, ram): pc.ram @0000000080000000 KVM
  0000000200000000-000000020000ffff (prio 0, nv-ram): pmem

FlatView #2
 AS "ich9-ahci", root: bus master container
  No rendered FlatView

"""
RANGES = [(0, 0xC0000), (0x1_0000_0000, 0xA000_0000)]

REGISTERS = """
CPU#0
RAX=ffffffff81c114f0 RBX=0000000000000000 RCX=0000000000000001 RDX=4000000000000000
CR0=80050033 CR2=00007f5c1ac2e000 CR3=0000000003a0a001 CR4=000006f0
DR6=00000000ffff0ff0 DR7=0000000000000400
EFER=0000000000000d01

CPU#1
CR0=00000010 CR2=00000000 CR3=00000000 CR4=00000000
EFER=0000000000000000
"""
VCPUS = [
    ControlRegisters(0x8005_0033, 0x3A0_A001, 0x6F0, 0xD01),
    ControlRegisters(0x10, 0, 0, 0),
]

SPACES = st.text(alphabet=" \t", min_size=1, max_size=3)
LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r\r\n"])
UNKNOWN = st.sampled_from(["", "  (a note)", "  0-1: new", "Root: x", "CR9=1", "  priority 5"])


@st.composite
def disturbed(draw: st.DrawFn, text: str) -> str:
    """Draw ``text`` with other line ends and spaces, columns at the ends, and unknown lines."""
    line_end, column = draw(LINE_ENDS), draw(st.sampled_from(["", " [disabled]", " owner:x", " "]))
    lines = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        words = draw(SPACES).join(line.split()) if line.strip() else ""
        lines.append(" " * indent + words + (column if words else ""))
        if draw(st.integers(0, 4)) == 0:
            lines.append(draw(UNKNOWN))
    return line_end.join(lines)


def test_the_ram_of_the_address_space_memory_is_found() -> None:
    assert parse_flat_view(FLAT_VIEW) == RANGES


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(prio 0, ram)", "(ram)"),  # as a patch on qemu-devel proposed
        ("(prio 0, ram)", "(prio 0, ram, shared)"),
        ("00000000000bffff", "BFFFF"),
        ("  0000000000000000-", "  0x0-"),
    ],
)
def test_ram_is_found_in_forms_that_may_come(old: str, new: str) -> None:
    assert old in FLAT_VIEW
    assert parse_flat_view(FLAT_VIEW.replace(old, new)) == RANGES


@given(disturbed(FLAT_VIEW))
@settings(deadline=None)
def test_ram_is_found_in_a_disturbed_view(text: str) -> None:
    assert parse_flat_view(text) == RANGES


def test_a_view_without_ram_is_empty() -> None:
    assert parse_flat_view('FlatView #0\n AS "memory", root: system\n') == []


@pytest.mark.parametrize(
    "text", ["", "unknown command: 'info'\r\n", FLAT_VIEW.replace('"memory"', '"x"')]
)
def test_what_is_no_flat_view_of_memory_is_an_error(text: str) -> None:
    with pytest.raises(HmpFormatError, match="info mtree -f") as caught:
        parse_flat_view(text)
    assert isinstance(caught.value, MonitorError)
    assert caught.value.command == "info mtree -f"


@given(st.integers(0, (1 << 64) - 1), SPACES, LINE_ENDS, st.sampled_from(["pc.ram", "/a (b)", ""]))
@settings(deadline=None)
def test_a_host_address_is_found(address: int, space: str, end: str, name: str) -> None:
    words = f"Host virtual address for 0x1000 ({name}) is {address:#x}".split()
    assert parse_host_address(space.join(words) + end) == address
    assert parse_host_address(end + space.join(words) + " (more)" + end) == address


@pytest.mark.parametrize(
    "text",
    [
        "No memory is mapped at address 0x1000\r\n",
        "Memory at address 0x1000 is not RAM\r\n",
        "Memory at address 0x1000is not RAM\r\n",
        "Size of memory region at 0x1000 exceeded.\r\n",
    ],
)
def test_what_is_not_ram_has_no_host_address(text: str) -> None:
    assert parse_host_address(text) is None


@pytest.mark.parametrize(
    "text", ["", "unknown command: 'gpa2hva'\r\n", "Host virtual address for 0x1 (x) is (nil)"]
)
def test_what_is_no_host_address_is_an_error(text: str) -> None:
    with pytest.raises(HmpFormatError, match="gpa2hva"):
        parse_host_address(text)


def test_the_control_registers_of_each_vcpu_are_found() -> None:
    assert parse_control_registers(REGISTERS) == VCPUS


@given(disturbed(REGISTERS))
@settings(deadline=None)
def test_control_registers_are_found_in_a_disturbed_text(text: str) -> None:
    assert parse_control_registers(text) == VCPUS


def test_a_vcpu_without_all_registers_is_left_out() -> None:
    assert parse_control_registers(REGISTERS.replace("CR4=000006f0", "")) == VCPUS[1:]


@pytest.mark.parametrize("text", ["", "CPU#0\nCR0=80050033\n", "No CPU available\r\n"])
def test_what_has_no_control_registers_is_an_error(text: str) -> None:
    with pytest.raises(HmpFormatError, match="info registers -a"):
        parse_control_registers(text)


@given(st.text(max_size=300) | st.text(alphabet='FlatView #0-9AS"memory":(ram)\n\r', max_size=300))
@settings(deadline=None)
def test_any_text_is_parsed_or_is_a_named_error(text: str) -> None:
    for parse in (parse_flat_view, parse_host_address, parse_control_registers):
        with contextlib.suppress(HmpFormatError):
            parse(text)
