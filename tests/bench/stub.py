"""Reads the learning stub from a built optpoline.ko."""

from io import BytesIO
from typing import Final

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from optpolined.calibrate.stub import LearnStub

__all__ = ("learn_stub",)

_NAME: Final = "optp_learn_rax"


def learn_stub(module: bytes) -> LearnStub:
    """Return the stub for rax; its one relocation is the jmp to the thunk."""
    with BytesIO(module) as file:
        elf = ELFFile(file)
        symbols = elf.get_section_by_name(".symtab")
        assert isinstance(symbols, SymbolTableSection)
        (symbol,) = (one for one in symbols.iter_symbols() if one.name == _NAME)
        text = elf.get_section(symbol["st_shndx"])
        start, size = symbol["st_value"], symbol["st_size"]
        code = text.data()[start : start + size]
        table = elf.get_section_by_name(f".rela{text.name}")
        assert isinstance(table, RelocationSection)
        (thunk,) = [
            relocation["r_offset"] - start
            for relocation in table.iter_relocations()
            if start <= relocation["r_offset"] < start + size
        ]
    return LearnStub(code[:thunk] + bytes(4) + code[thunk + 4 :], thunk)
