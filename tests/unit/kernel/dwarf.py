"""What a C compiler made of optpoline_abi.h, by the DWARF of an object file."""

import ctypes
from dataclasses import dataclass
from pathlib import Path

from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile

from optpolined.kernel.module import abi

ENUMS = {
    "optp_site_kind": {f"OPTP_SITE_{kind.name}": int(kind) for kind in abi.SiteKind},
    "optp_poke_state": {f"OPTP_POKE_{state.name}": int(state) for state in abi.PokeState},
    "optp_request": {f"OPTP_REQUEST_{op.name}": int(op) for op in abi.RequestOp},
}


@dataclass(frozen=True)
class Layouts:
    """``structs``: for each, its size and the (offset, size) of its fields; ``enums``: values."""

    structs: dict[str, tuple[int, dict[str, tuple[int, int]]]]
    enums: dict[str, dict[str, int]]


def mirrored() -> Layouts:
    """The layouts as abi.py has them."""
    return Layouts(
        {
            name: (
                ctypes.sizeof(struct),
                {
                    field: (getattr(struct, field).offset, getattr(struct, field).size)
                    for field, *_ in struct._fields_
                },
            )
            for name, struct in abi.STRUCTS.items()
        },
        ENUMS,
    )


def compiled(path: Path) -> Layouts:
    """The layouts in an object file with debug information, such as optpoline.ko.

    Those that the file does not use, and so does not describe, are left out.
    """
    layouts = Layouts({}, {})
    with path.open("rb") as file:
        info = ELFFile(file).get_dwarf_info(relocate_dwarf_sections=True)
        for unit in info.iter_CUs():
            for die in unit.iter_DIEs():
                name = _name(die)
                if die.tag == "DW_TAG_structure_type" and name in abi.STRUCTS and die.has_children:
                    layouts.structs[name] = (_value(die, "DW_AT_byte_size"), _fields(die))
                elif die.tag == "DW_TAG_enumeration_type" and name in ENUMS:
                    layouts.enums[name] = {
                        _name(child): _value(child, "DW_AT_const_value")
                        for child in die.iter_children()
                    }
    return layouts


def _fields(struct: DIE) -> dict[str, tuple[int, int]]:
    return {
        _name(member): (
            _value(member, "DW_AT_data_member_location"),
            _size(member.get_DIE_from_attribute("DW_AT_type")),
        )
        for member in struct.iter_children()
        if member.tag == "DW_TAG_member"
    }


def _size(kind: DIE) -> int:
    if "DW_AT_byte_size" in kind.attributes:
        return _value(kind, "DW_AT_byte_size")
    size = _size(kind.get_DIE_from_attribute("DW_AT_type"))
    if kind.tag == "DW_TAG_array_type":
        for dimension in kind.iter_children():
            size *= _value(dimension, "DW_AT_upper_bound") + 1
    return size


def _name(die: DIE) -> str:
    name: bytes = die.attributes["DW_AT_name"].value if "DW_AT_name" in die.attributes else b""
    return name.decode()


def _value(die: DIE, attribute: str) -> int:
    value: int = die.attributes[attribute].value
    return value
