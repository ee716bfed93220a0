"""The site scanner against the kernel's own tables of the same sites.

objtool lists every call and jump to a retpoline thunk in ``.retpoline_sites``: in vmlinux, which
has no symbol table, so that the functions come from a running kernel's kallsyms; and in modules.
"""

import base64
import gzip
import itertools
import struct
from collections.abc import Callable, Iterator, Sequence

import pytest
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import Relocation, RelocationSection
from elftools.elf.sections import Section, Symbol, SymbolTableSection

from guest.image.boot import Guest
from guest.image.build import Image
from guest.image.paths import FLAVOURS, Flavour
from optpolined.addresses import GuestVirtual
from optpolined.kernel.sites.scan import Scan, scan
from optpolined.kernel.sites.thunks import Thunks
from optpolined.kernel.symbols.symbols import Function
from optpolined.x86 import THUNK_REGISTERS, Register
from tests.guest.retpoline_table import sites_in

_THUNKS: dict[str, Register] = {
    f"__x86_indirect_thunk_{register.name.lower()}": register for register in THUNK_REGISTERS
}

_MODULES = ("kvm", "kvm-intel", "xfs", "nf_tables", "fuse", "overlay", "veth", "virtio_net")
_MODULE_BASE = GuestVirtual(0xFFFFFFFFC0000000)
_MODULE_THUNKS: dict[Register, GuestVirtual] = {
    register: GuestVirtual(0xFFFFFFFF81E01740 + 32 * register) for register in THUNK_REGISTERS
}


@pytest.fixture
def running(flavour: Flavour, guest: Guest, boot: Callable[..., Guest]) -> Guest:
    """A guest that runs the kernel of this flavour."""
    return guest if flavour == "cloud" else boot(flavour)


def text_symbols(running: Guest) -> list[tuple[int, str]]:
    """Return the text symbols of the running kernel, sorted."""
    # The output goes through a serial port, which is slow.
    packed = running.run("grep -i ' [tw] ' /proc/kallsyms | gzip | base64", timeout_seconds=180)
    fields = [line.split() for line in gzip.decompress(base64.b64decode(packed)).splitlines()]
    return sorted((int(field[0], 16), field[2].decode()) for field in fields if len(field) == 3)


def functions_of(symbols: Sequence[tuple[int, str]], slide: int) -> list[Function]:
    """Return functions as the linker placed them; each ends where the next one starts."""
    starts = sorted({address for address, _ in symbols})
    end = dict(itertools.pairwise(starts))
    return [
        Function(GuestVirtual(address - slide), end.get(address, address) - address, name, None)
        for address, name in symbols
    ]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_vmlinux(
    boot: Callable[..., Guest], images: dict[Flavour, Image], flavour: Flavour
) -> None:
    symbols = text_symbols(boot(flavour, append="noload"))
    with images[flavour].vmlinux.open("rb") as file:
        elf = ELFFile(file)
        text, table = (elf.get_section_by_name(name) for name in (".text", ".retpoline_sites"))
        assert text is not None
        assert table is not None
        listed = sites_in(table.data(), table["sh_addr"])
        found = scan_vmlinux(text, symbols)
        end = text["sh_addr"] + text["sh_size"]
    in_text = {site for site in listed if text["sh_addr"] <= site < end}

    assert found.rejected == []
    assert {site.address for site in found.sites} == in_text
    assert len(found.sites) == len(in_text) >= 7000
    assert len(listed - in_text) < 10, "these are init text"
    assert not any(site.live_flags for site in found.sites)


def scan_vmlinux(text: Section, symbols: Sequence[tuple[int, str]]) -> Scan:
    (stext,) = (address for address, name in symbols if name == "_stext")
    functions = functions_of(symbols, stext - text["sh_addr"])
    thunks = {
        _THUNKS[function.name]: function.start for function in functions if function.name in _THUNKS
    }
    assert len(thunks) == len(_THUNKS)
    start = GuestVirtual(text["sh_addr"])
    return scan(text.data(), start, Thunks.one_array(thunks), functions)


@pytest.mark.parametrize("name", _MODULES)
def test_modules_of_debian(images: dict[Flavour, Image], name: str) -> None:
    kernel = images["cloud"].kernel
    (path,) = kernel.vmlinuz.parents[1].rglob(f"lib/modules/{kernel.release}/**/{name}.ko")
    with path.open("rb") as file:
        module = Module(ELFFile(file))
        sections = module.sections_with_code()
        scans = {index: module.scan(index) for index in sections}
        listed = {index: module.listed(index) for index in sections}

    assert [scan.rejected for scan in scans.values() if scan.rejected] == []
    assert {
        index: {site.address - _MODULE_BASE for site in scan.sites} for index, scan in scans.items()
    } == listed
    assert any(listed.values())
    # An instruction that kvm emulates uses live flags (fastop, arch/x86/kvm/emulate.c).
    live = {site.function for scan in scans.values() for site in scan.sites if site.live_flags}
    assert live == ({"fastop", "em_loop", "x86_emulate_insn"} if name == "kvm" else set())


class Module:
    """A module's file; each section is taken to be loaded at the same address."""

    def __init__(self, elf: ELFFile) -> None:
        self._elf = elf
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        self._symbols = list(table.iter_symbols())

    def sections_with_code(self) -> list[int]:
        return [
            index
            for index, section in enumerate(self._elf.iter_sections())
            if section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR and section["sh_size"]
        ]

    def listed(self, index: int) -> set[int]:
        """Return the sites in a section, from .retpoline_sites."""
        return {
            symbol["st_value"] + relocation["r_addend"]
            for relocation, symbol in self._relocations(".retpoline_sites")
            if symbol["st_shndx"] == index
        }

    def scan(self, index: int) -> Scan:
        section = self._elf.get_section(index)
        text = bytearray(section.data())
        for relocation, symbol in self._relocations(section.name):
            if symbol.name in _THUNKS:
                place = relocation["r_offset"]
                thunk = _MODULE_THUNKS[_THUNKS[symbol.name]]
                displacement = thunk + relocation["r_addend"] - (_MODULE_BASE + place)
                struct.pack_into("<i", text, place, displacement)
        functions = [
            Function(
                GuestVirtual(_MODULE_BASE + symbol["st_value"]),
                symbol["st_size"],
                symbol.name,
                "module",
            )
            for symbol in self._symbols
            if symbol["st_shndx"] == index and symbol["st_info"]["type"] == "STT_FUNC"
        ]
        thunks = Thunks.one_array(_MODULE_THUNKS)
        return scan(bytes(text), _MODULE_BASE, thunks, functions)

    def _relocations(self, name: str) -> Iterator[tuple[Relocation, Symbol]]:
        """The relocations of a section, with the symbol of each."""
        section = self._elf.get_section_by_name(f".rela{name}")
        if isinstance(section, RelocationSection):
            for relocation in section.iter_relocations():
                yield relocation, self._symbols[relocation["r_info_sym"]]
