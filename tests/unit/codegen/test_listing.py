"""Machine code as people read it."""

from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import Assembler
from optpolined.codegen.forms import Chain
from optpolined.codegen.listing import disassemble
from optpolined.x86 import Register

AT = GuestVirtual(0xFFFF_FFFF_C000_0000)
TARGET = GuestVirtual(0xFFFF_FFFF_8123_4560)
STUB = GuestVirtual(0xFFFF_FFFF_C074_4000)
NAMES = {TARGET: "vfs_read", STUB: "the stub"}


def test_a_block_names_its_targets_and_its_stub() -> None:
    code = Assembler().assemble(
        Chain((TARGET,)), register=Register.RAX, at=AT, record=0x1000, learn_stub=STUB
    )
    lines = list(disassemble(code, AT, NAMES.get))
    assert b"".join(line.code for line in lines) == code
    assert lines[0].address == AT
    texts = [line.text for line in lines]
    assert texts[0] == "cmp rax, 0xffffffff81234560 <vfs_read>"
    assert texts[1] == "je 0xffffffff81234560 <vfs_read>"
    assert texts[-1] == "jmp 0xffffffffc0744000 <the stub>"


def test_what_has_no_name_is_left_as_it_is() -> None:
    (line,) = disassemble(b"\xe8\x00\x00\x00\x10", AT, lambda _: None)
    assert line.text == "call 0xffffffffd0000005"


@given(st.binary(max_size=80))
def test_any_bytes_are_listed_whole(code: bytes) -> None:
    lines = list(disassemble(code, AT, lambda _: "a name"))
    assert b"".join(line.code for line in lines) == code
    assert [line.address for line in lines] == [
        AT + len(b"".join(line.code for line in lines[:number])) for number in range(len(lines))
    ]
