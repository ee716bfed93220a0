"""The kernel's own symbol table, checked here and decoded by drgn.

The guest wrote the table, and drgn trusts a kernel's memory: tokens of 64 KiB in names of 16,384
tokens would eat the host's memory.  So the tables are read and measured first, and drgn is given
those very bytes as the only memory of its program, and a VMCOREINFO that is written here.  No two
tables may overlap: of bytes that were read twice, drgn would get others than were measured.  That
is fast, too: through page tables it asks for half a million reads.

Layout: scripts/kallsyms.c and kernel/kallsyms.c in the kernel.  It takes Linux 6.0 or later, whose
VMCOREINFO names the tables (f09bddbd8661, "vmcoreinfo: add kallsyms_num_syms symbol").
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final

import drgn
import numpy as np
from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import SymbolsError, TranslationError
from optpolined.kernel.paging import PAGE_SIZE, AddressSpace
from optpolined.kernel.vmcoreinfo import Vmcoreinfo

__all__ = ("KERNEL_SYMBOLS_MAX", "SYMBOL_NAME_MAX", "load_kallsyms")

KERNEL_SYMBOLS_MAX: Final = 1_000_000
"""The most symbols that are taken from a kernel; a Debian one has about 100,000."""

SYMBOL_NAME_MAX: Final = 512
"""Bytes; KSYM_NAME_LEN of Linux 6.1.  Longer names are cut."""

_NAMES_SIZE_MAX = 32 << 20
_EXPANDED_SIZE_MAX = 128 << 20
_PIECE = 1 << 20
_TOKENS = 256
_TOKEN_SIZE_MAX = 1024  # bytes of the last token; the index reaches the others
_LONG_NAME = 0x80


def load_kallsyms(space: AddressSpace, vmcoreinfo: Vmcoreinfo) -> list[tuple[int, str]]:
    """Return the address and name of each kernel symbol, in no order.  Names are printable ASCII.

    :raise SymbolsError: there is no table, or it makes no sense.
    :raise QemuError: the guest's memory cannot be read at all.
    """
    try:
        with space.snapshot() as pages:
            tables = _read_tables(pages, vmcoreinfo.symbols)
    except TranslationError as error:
        raise SymbolsError(f"the guest's kallsyms are not mapped: {error}") from error
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    try:
        program.set_linux_kernel_custom(_note(vmcoreinfo, tables), is_live=True)
        for name, table in tables.items():
            _add_table(program, vmcoreinfo.symbols[name], table)
        symbols = load_vmlinux_kallsyms(program)(program, None, None, one=False)
    except (
        drgn.BadDataError,
        drgn.FaultError,
        drgn.MissingDebugInfoError,
        OverflowError,
        ValueError,
    ) as error:
        raise SymbolsError(f"drgn cannot read the guest's kallsyms: {error}") from error
    return [(symbol.address, symbol.name[:SYMBOL_NAME_MAX]) for symbol in symbols]


def _note(vmcoreinfo: Vmcoreinfo, tables: Iterable[str]) -> bytes:
    """Return the VMCOREINFO for drgn: what it asks for and nothing else."""
    places = {name: vmcoreinfo.symbols.get(name, 0) for name in ("_stext", *tables)}
    symbols = "".join(f"SYMBOL({name})={address:x}\n" for name, address in places.items())
    # The root of the page tables must not be absent, and is never looked at.
    text = f"OSRELEASE={vmcoreinfo.osrelease}\nPAGESIZE={PAGE_SIZE}\nSYMBOL(swapper_pg_dir)=1\n"
    return (text + symbols).encode()


def _add_table(program: drgn.Program, address: GuestVirtual, table: bytes) -> None:
    def read(_address: int, count: int, offset: int, _physical: bool) -> bytes:
        return table[offset : offset + count]

    program.add_memory_segment(address, len(table), read)


def _read_tables(space: AddressSpace, symbols: Mapping[str, GuestVirtual]) -> dict[str, bytes]:
    """Return what drgn will read, by name."""

    def place(name: str) -> GuestVirtual:
        try:
            return symbols[name]
        except KeyError as error:
            raise SymbolsError(
                f"the guest's VMCOREINFO lacks {name}: it needs Linux 6.0"
            ) from error

    count_bytes = space.read(place("kallsyms_num_syms"), 4)
    count = int.from_bytes(count_bytes, "little")
    if not 0 < count <= KERNEL_SYMBOLS_MAX:
        raise SymbolsError(f"the guest's kallsyms claim {count} symbols")
    index = space.read(place("kallsyms_token_index"), 2 * _TOKENS)
    tokens, lengths = _read_tokens(space, place("kallsyms_token_table"), index)
    names = _read_names(space, place("kallsyms_names"), count)
    if _expanded_size(names, lengths) > _EXPANDED_SIZE_MAX:
        raise SymbolsError("the names in the guest's kallsyms are absurdly long")
    tables = {
        "kallsyms_num_syms": count_bytes,
        "kallsyms_token_index": index,
        "kallsyms_token_table": tokens,
        "kallsyms_names": names,
        "kallsyms_offsets": space.read(place("kallsyms_offsets"), 4 * count),
        "kallsyms_relative_base": space.read(place("kallsyms_relative_base"), 8),
    }
    ends = sorted((symbols[name], symbols[name] + len(table)) for name, table in tables.items())
    if any(end > start for (_, end), (start, _) in pairwise(ends)):
        raise SymbolsError("the tables of the guest's kallsyms overlap")
    return tables


def _expanded_size(names: bytes, lengths: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> int:
    """Return the bytes of all names with their tokens written out."""
    pieces = range(0, len(names), _PIECE)
    octets = (np.frombuffer(names[start : start + _PIECE], np.uint8) for start in pieces)
    return sum(int(lengths[piece].sum()) for piece in octets)


def _read_tokens(
    space: AddressSpace, address: GuestVirtual, index: bytes
) -> tuple[bytes, "np.ndarray[tuple[int], np.dtype[np.int64]]"]:
    """Return the NUL-terminated tokens, and the length of each of the 256."""
    starts = np.frombuffer(index, "<u2").tolist()
    table = bytearray()
    while (end := table.find(b"\0", max(starts))) < 0:
        if len(table) > max(starts) + _TOKEN_SIZE_MAX:
            raise SymbolsError("the token table of the guest's kallsyms does not end")
        _extend(space, address, table)
    del table[end + 1 :]
    if not table.replace(b"\0", b" ").decode("latin-1").isprintable() or not table.isascii():
        raise SymbolsError("the token table of the guest's kallsyms is not text")
    lengths = np.array([table.index(b"\0", start) - start for start in starts], np.int64)
    return bytes(table), lengths


def _read_names(space: AddressSpace, address: GuestVirtual, count: int) -> bytes:
    """``count`` names: each its length in tokens, in one byte or (from 128 on) two, and the tokens.

    Source: 73bbb94466fd ("kallsyms: support "big" kernel symbols"), Linux 6.1.
    """
    names = bytearray()
    end = 0
    for _ in range(count):
        while end + 2 > len(names):
            _extend(space, address, names)
        length = names[end]
        if length & _LONG_NAME:
            length = (length & ~_LONG_NAME | names[end + 1] << 7) + 1
        end += 1 + length
        if end > _NAMES_SIZE_MAX:
            raise SymbolsError("the names in the guest's kallsyms do not end")
    while end > len(names):
        _extend(space, address, names)
    return bytes(names[:end])


def _extend(space: AddressSpace, address: GuestVirtual, table: bytearray) -> None:
    """Read on to the end of the page, which is mapped if a byte of it is."""
    here = GuestVirtual(address + len(table))
    table += space.read(here, PAGE_SIZE - here % PAGE_SIZE)
