"""Compiles with the plugin, links, and reads what it wrote: without any code of the daemon."""

import os
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import capstone
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

ROOT = Path(__file__).parents[3]
PLUGIN = ROOT / "guest" / "gcc-plugin"
INCLUDE = ROOT / "guest" / "include"
SHAPES = Path(__file__).parent / "shapes"

KERNEL_FLAGS = (
    "-mindirect-branch=thunk-extern",
    "-mindirect-branch-register",
    "-mindirect-branch-cs-prefix",
    "-mfunction-return=thunk-extern",
    "-mharden-sls=all",
    "-fno-jump-tables",
    "-fno-asynchronous-unwind-tables",
    "-fno-pie",
    "-mno-red-zone",
)
"""What of a 6.1 kernel's flags has to do with calls."""

REGISTERS = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
"""By x86 number."""

INLINE_CALL, INLINE_JMP, STATIC_CALL, STATIC_JMP, TRAMPOLINE = range(1, 6)
NO_REGISTER = 0xFF

HEADER = struct.Struct("<IHHII")
RECORD = struct.Struct("<iiBBBBB3s")


class CompileError(Exception):
    """The compiler's messages."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What ``command`` printed on standard output and standard error, in one."""
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment | {"LC_ALL": "C"},
    )
    if done.returncode != 0:
        raise CompileError(done.stdout)
    return done.stdout


@dataclass
class Compiler:
    """gcc with the plugin, and a folder for what it makes."""

    plugin: Path
    folder: Path
    made: int = 0

    @cached_property
    def thunks(self) -> Path:
        """The object with the thunks."""
        return self.file(SHAPES / "thunks.S", plugin=None)

    def file(self, source: Path, *flags: str | Path, plugin: Sequence[str] | None = ()) -> Path:
        """The object of ``source``; ``plugin`` holds the plugin's arguments, None is without."""
        self.made += 1
        built = self.folder / f"{source.stem}_{self.made}.o"
        arguments: list[str] = []
        if plugin is not None:
            arguments = [f"-fplugin={self.plugin}"]
            arguments += [f"-fplugin-arg-optpoline-{argument}" for argument in plugin]
        warnings = ("-Wall", "-Wextra", "-Werror")
        run("gcc", "-I", INCLUDE, *warnings, *arguments, *flags, "-c", source, "-o", built)
        return built

    def text(self, text: str, *flags: str, plugin: Sequence[str] | None = ()) -> Path:
        """The object of a piece of C, compiled as the kernel compiles."""
        source = self.folder / f"text_{self.made}.c"
        source.write_text(text)
        return self.file(source, *(flags or ("-O2",)), *KERNEL_FLAGS, plugin=plugin)

    def image(self, *objects: Path) -> "Image":
        """Objects and the thunks, linked: each address is final.  What they lack is at 0."""
        self.made += 1
        linked = self.folder / f"image_{self.made}"
        flags = ("-static", "-e", "0", "--unresolved-symbols=ignore-all")
        run("ld", *flags, "-o", linked, *objects, self.thunks)
        return Image(linked)

    def compiled(self, text: str, *flags: str, plugin: Sequence[str] | None = ()) -> "Image":
        return self.image(self.text(text, *flags, plugin=plugin))


@dataclass(frozen=True)
class Record:
    site: int
    other: int
    kind: int
    register: int
    key: tuple[int, int, int]
    """Number of the register, shift and bits."""


@dataclass(frozen=True)
class Section:
    address: int
    offset: int
    data: bytes
    flags: int
    alignment: int


@dataclass
class Image:
    """An ELF file whose sections stand at their addresses."""

    path: Path
    sections: dict[str, Section] = field(default_factory=dict)
    functions: dict[str, range] = field(default_factory=dict)
    """The functions."""
    run_symbols: list[tuple[int, int, str, str]] = field(default_factory=list)
    """Of each ``__optpoline_sites``: address, size, binding, type."""

    def __post_init__(self) -> None:
        with self.path.open("rb") as file:
            elf = ELFFile(file)
            for section in elf.iter_sections():
                data = b"" if section["sh_type"] == "SHT_NOBITS" else section.data()
                self.sections[section.name] = Section(
                    section["sh_addr"],
                    section["sh_offset"],
                    data,
                    section["sh_flags"],
                    section["sh_addralign"],
                )
            symbols = elf.get_section_by_name(".symtab")
            assert isinstance(symbols, SymbolTableSection)
            for symbol in symbols.iter_symbols():
                at, size = symbol["st_value"], symbol["st_size"]
                if symbol.name == "__optpoline_sites":
                    kind = symbol["st_info"]
                    self.run_symbols.append((at, size, kind["bind"], kind["type"]))
                elif symbol["st_info"]["type"] == "STT_FUNC":
                    self.functions[symbol.name] = range(at, at + size)

    def section_of(self, address: int) -> Section:
        for section in self.sections.values():
            if section.address and 0 <= address - section.address < len(section.data):
                return section
        raise AssertionError(f"nothing at {address:#x}")

    def read(self, address: int, size: int) -> bytes:
        section = self.section_of(address)
        return section.data[address - section.address :][:size]

    def function_of(self, address: int) -> str:
        (name,) = (name for name, place in self.functions.items() if address in place)
        return name

    def runs(self) -> list[list[Record]]:
        """The records of each run, headers checked."""
        if ".optpoline_sites" not in self.sections:
            assert not self.run_symbols
            return []
        section = self.sections[".optpoline_sites"]
        runs, at = [], 0
        while at < len(section.data):
            magic, version, record_size, count, reserved = HEADER.unpack_from(section.data, at)
            assert (magic, version, record_size, reserved) == (0x5354504F, 1, 16, 0)
            assert count > 0
            size = 16 + 16 * count
            assert (section.address + at, size, "STB_LOCAL", "STT_OBJECT") in self.run_symbols
            runs.append(
                [self._record(section, at + offset) for offset in range(16, size, 16)],
            )
            at += size
        assert at == len(section.data)
        assert len(runs) == len(self.run_symbols)
        return runs

    @property
    def records(self) -> list[Record]:
        return [record for run in self.runs() for record in run]

    def inline(self, function: str) -> list[Record]:
        """The inline sites in ``function``, by address."""
        found = [
            record
            for record in self.records
            if record.kind in {INLINE_CALL, INLINE_JMP} and record.site in self.functions[function]
        ]
        return sorted(found, key=lambda record: record.site)

    @staticmethod
    def _record(section: Section, at: int) -> Record:
        site, other, kind, register, key, shift, bits, pad = RECORD.unpack_from(section.data, at)
        assert pad == bytes(3)
        here = section.address + at
        return Record(here + site, other and here + 4 + other, kind, register, (key, shift, bits))


def branch(at: int, opcode: int, target: int) -> bytes:
    """A call (0xe8) or jmp (0xe9) of five bytes."""
    return bytes([opcode]) + struct.pack("<i", target - at - 5)


def inline_code(image: Image, record: Record, *, prefix: bool = True) -> tuple[bytes, set[int]]:
    """The bytes that an unlearned inline site must have, and where its branches stand.

    :param prefix: compiled with -mindirect-branch-cs-prefix.
    """
    number = record.register
    thunk = image.functions[f"__x86_indirect_thunk_{REGISTERS[number]}"].start
    cs = b"\x2e" if prefix and number >= 8 else b""
    code = bytes([0x48 | number >> 3, 0x81, 0xF8 | number & 7]) + b"\xff" * 4
    if record.kind == INLINE_CALL:
        code += b"\x75\x07" + branch(record.site + 9, 0xE8, thunk)
        code += bytes([0xEB, 5 + len(cs)])
        slow = record.site + len(code)
        code += cs + branch(slow + len(cs), 0xE8, thunk)
    else:
        code += b"\x75\x05" + branch(record.site + 9, 0xE9, thunk)
        slow = record.site + len(code)
        code += cs + branch(slow + len(cs), 0xE9, thunk)
    return code, {record.site + 9, slow}


def thunk_branches(image: Image) -> set[int]:
    """Where a call or jmp to a thunk stands in the functions of ``image``."""
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.detail = True
    thunks = {
        place.start for name, place in image.functions.items() if "__x86_indirect_thunk_" in name
    }
    found = set()
    for place in image.functions.values():
        if place.start in thunks:
            continue
        decoded = 0
        for instruction in decoder.disasm(image.read(place.start, len(place)), place.start):
            decoded += instruction.size
            direct = instruction.group(capstone.CS_GRP_CALL) or instruction.group(
                capstone.CS_GRP_JUMP
            )
            operand = instruction.operands[0] if direct else None
            if operand and operand.type == capstone.CS_OP_IMM and operand.imm in thunks:
                found.add(instruction.address)
        assert decoded == len(place)
    return found
