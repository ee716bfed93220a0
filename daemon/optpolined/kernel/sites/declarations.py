"""Reads what code of our gcc plugin declares about itself: the section ``.optpoline_sites``.

The layout is that of guest/include/optpoline_sites.h: each object file brings one run, a header and
its records, under the local symbol ``RUN_SYMBOL``.  The guest can write all of it: a record is a
claim, which declared_inline.py and static_calls.py check against the code.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from optpolined.addresses import GuestVirtual
from optpolined.codegen.check import check_key
from optpolined.codegen.errors import BadKeyError
from optpolined.codegen.forms import Key
from optpolined.kernel.errors import TranslationError
from optpolined.kernel.paging import AddressSpace
from optpolined.x86 import Register

__all__ = (
    "TRAMPOLINE_PREFIX",
    "Declaration",
    "DeclarationKind",
    "Declarations",
    "read_declarations",
)

TRAMPOLINE_PREFIX: Final = "__optp_tramp_"
"""The symbol of a static call's trampoline is this and its key."""

_MAGIC: Final = 0x5354504F
_VERSION: Final = 1
_RUN: Final = struct.Struct("<IHHII")
_DECLARATION: Final = struct.Struct("<iiBBBBB3x")
_OTHER_OFFSET: Final = 4
_RUNS_MAX: Final = 1 << 15
_RECORDS_MAX: Final = 1 << 17
_NO_REGISTER: Final = 0xFF


class DeclarationKind(IntEnum):
    """``enum optp_sites_kind``."""

    INLINE_CALL = 1
    INLINE_JMP = 2
    STATIC_CALL = 3
    STATIC_JMP = 4
    TRAMPOLINE = 5


_KINDS: Final = frozenset(DeclarationKind)
_INLINE: Final = frozenset({DeclarationKind.INLINE_CALL, DeclarationKind.INLINE_JMP})


@dataclass(frozen=True, slots=True)
class Declaration:
    """One record; ``other`` is 0, and ``register`` is ``None``, where the record has none."""

    kind: DeclarationKind
    site: GuestVirtual
    other: GuestVirtual
    register: Register | None
    key: Key | None


@dataclass(slots=True)
class Declarations:
    """All records; ``refused`` says of each run or record without sense why."""

    records: list[Declaration] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def read_declarations(space: AddressSpace, runs: Iterable[GuestVirtual]) -> Declarations:
    """Read the records of each run: 32,768 runs at most, and 131,072 records of all together.

    :raise QemuError: the guest's memory cannot be read at all.
    """
    declared = Declarations()
    left = _RECORDS_MAX
    for number, run in enumerate(dict.fromkeys(runs)):
        if number == _RUNS_MAX:
            declared.refused.append(f"the guest has more than {_RUNS_MAX} tables of site records")
            break
        try:
            count = _count(space, run, left, declared)
            left -= count
            _read_run(space, GuestVirtual(run + _RUN.size), count, declared)
        except TranslationError as error:
            declared.refused.append(f"the site records at {run:#x} are not mapped: {error}")
    return declared


def _count(space: AddressSpace, run: GuestVirtual, left: int, declared: Declarations) -> int:
    """Return how many records of a run are to be read: all or none."""
    magic, version, record_size, count, _ = _RUN.unpack(space.read(run, _RUN.size))
    if magic != _MAGIC:
        declared.refused.append(f"what stands at {run:#x} are no site records")
    elif version != _VERSION or record_size != _DECLARATION.size:
        declared.refused.append(
            f"the site records at {run:#x} are of version {version}, and version {_VERSION} is "
            "known here: rebuild that code with this optpolined's gcc plugin"
        )
    elif count > left:
        declared.refused.append(f"the {count} site records at {run:#x} are too many")
    else:
        return int(count)
    return 0


def _read_run(space: AddressSpace, start: GuestVirtual, count: int, declared: Declarations) -> None:
    data = space.read(start, count * _DECLARATION.size)
    for offset in range(0, len(data), _DECLARATION.size):
        _take(GuestVirtual(start + offset), data[offset : offset + _DECLARATION.size], declared)


def _take(at: GuestVirtual, data: bytes, declared: Declarations) -> None:
    site, other, kind, register, key_register, shift, bits = _DECLARATION.unpack(data)
    key = None
    reason = None
    if kind not in _KINDS:
        reason = f"its kind is {kind}"
    elif kind in _INLINE:
        if register >= len(Register) or register == Register.RSP:
            reason = f"no target register has the number {register}"
        elif key_register != _NO_REGISTER:
            reason = _key_nonsense(key_register, register, shift, bits)
            if reason is None:
                key = Key(Register(key_register), shift, bits)
    if reason is not None:
        declared.refused.append(f"the site record at {at:#x} makes no sense: {reason}")
        return
    declared.records.append(
        Declaration(
            kind=DeclarationKind(kind),
            site=_address(at + site),
            other=_address(at + _OTHER_OFFSET + other) if other else GuestVirtual(0),
            register=Register(register) if kind in _INLINE else None,
            key=key,
        )
    )


def _key_nonsense(key_register: int, register: int, shift: int, bits: int) -> str | None:
    """Return what is wrong with the key of a record."""
    if key_register >= len(Register):
        return f"no key register has the number {key_register}"
    try:
        check_key(Key(Register(key_register), shift, bits), Register(register))
    except BadKeyError as error:
        return str(error)
    return None


def _address(value: int) -> GuestVirtual:
    return GuestVirtual(value % (1 << 64))
