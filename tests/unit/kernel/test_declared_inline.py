"""Which declared inline sites are believed, and what becomes of the sites of a text."""

import capstone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Key
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.module.header import parse_header
from optpolined.kernel.sites.declarations import Declaration, DeclarationKind
from optpolined.kernel.sites.declared_inline import with_inline_parts
from optpolined.kernel.sites.inline_part import InlinePart, inline_part
from optpolined.kernel.sites.scan import Site, scan, with_originals
from optpolined.kernel.sites.thunks import Thunks
from optpolined.kernel.symbols.symbols import Function
from optpolined.x86 import THUNK_REGISTERS, Register
from tests.unit.kernel.fake_guest import HEADER, KERNEL_TEXT, raw_header
from tests.unit.kernel.inline_code import emitted

THUNKS = parse_header(bytes(raw_header()), HEADER).thunk
ALL_THUNKS = Thunks.one_array(THUNKS)
RECORDS = {SiteKind.CALL: DeclarationKind.INLINE_CALL, SiteKind.JMP: DeclarationKind.INLINE_JMP}
TARGET = GuestVirtual(KERNEL_TEXT + 0x40_0000)
RETURN = b"\xc3"
AT = GuestVirtual(KERNEL_TEXT + 8)

forms = pytest.mark.parametrize(
    ("register", "kind", "prefix"),
    [
        (Register.RAX, SiteKind.CALL, False),
        (Register.RBX, SiteKind.JMP, False),
        (Register.R9, SiteKind.CALL, True),
        (Register.R12, SiteKind.JMP, True),
    ],
    ids=["call", "tail", "cs call", "cs tail"],
)


def declared(
    at: int, register: Register, kind: SiteKind = SiteKind.CALL, key: Key | None = None
) -> Declaration:
    return Declaration(RECORDS[kind], GuestVirtual(at), GuestVirtual(0), register, key)


def code(
    register: Register,
    kind: SiteKind = SiteKind.CALL,
    *,
    at: int = AT,
    prefix: bool = False,
    head: GuestVirtual | None = None,
) -> bytes:
    return emitted(at, register, THUNKS[register], kind, prefix=prefix, head=head)


def believed(text: bytes, declaration: Declaration, base: int = AT) -> InlinePart | str:
    return inline_part(declaration, text, GuestVirtual(base), ALL_THUNKS)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("kind", [SiteKind.CALL, SiteKind.JMP])
@pytest.mark.parametrize("register", THUNK_REGISTERS, ids=lambda register: register.name)
def test_what_the_plugin_emits_is_believed(
    register: Register, kind: SiteKind, prefix: bool
) -> None:
    built = code(register, kind, prefix=prefix)
    part = believed(built, declared(AT, register, kind))
    assert isinstance(part, InlinePart)
    assert part.compare == AT
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    name, thunk = register.name.lower(), f"{THUNKS[register]:#x}"
    listed = [
        (at, mnemonic, operands) for at, _, mnemonic, operands in decoder.disasm_lite(built, AT)
    ]
    went = "call" if kind is SiteKind.CALL else "jmp"
    branch: list[tuple[int, str, str]] = [(part.branch, went, thunk)]
    if kind is SiteKind.CALL:
        branch.append((part.branch + 5, "jmp", f"{AT + len(built):#x}"))
    assert listed == [
        (AT, "cmp", f"{name}, -1"),
        (AT + 7, "jne", f"{part.slow:#x}"),
        *branch,
        (part.slow, went, thunk),
    ]
    assert built.startswith(part.unlearned_compare)
    assert built[9:].startswith(part.unlearned_branch)


@forms
def test_not_one_byte_may_differ(register: Register, kind: SiteKind, prefix: bool) -> None:
    built = code(register, kind, prefix=prefix)
    declaration = declared(AT, register, kind)
    for place in range(len(built)):
        for bit in range(8):
            other = bytearray(built)
            other[place] ^= 1 << bit
            assert isinstance(believed(bytes(other), declaration), str), (place, bit)


@forms
@given(data=st.data())
def test_no_byte_may_be_any_other_one(
    register: Register, kind: SiteKind, prefix: bool, data: st.DataObject
) -> None:
    built = bytearray(code(register, kind, prefix=prefix))
    place = data.draw(st.integers(0, len(built) - 1))
    built[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != built[place]))
    assert isinstance(believed(bytes(built), declared(AT, register, kind)), str)


@forms
def test_code_that_the_text_does_not_hold_is_not_believed(
    register: Register, kind: SiteKind, prefix: bool
) -> None:
    built = code(register, kind, prefix=prefix)
    declaration = declared(AT, register, kind)
    assert isinstance(believed(built[:-1], declaration), str)
    assert isinstance(believed(built, declaration, AT + 1), str)
    assert isinstance(believed(built, declaration, AT - len(built)), str)
    assert isinstance(believed(built, declared(AT, Register.RDI, kind)), str)
    other = SiteKind.JMP if kind is SiteKind.CALL else SiteKind.CALL
    assert isinstance(believed(built, declared(AT, register, other)), str)


@given(text=st.binary(max_size=64), at=st.integers(0, 2**64 - 1))
def test_no_text_is_believed_by_accident(text: bytes, at: int) -> None:
    for declaration in (declared(at, Register.RAX), declared(AT, Register.R9, SiteKind.JMP)):
        assert isinstance(believed(text, declaration), str)


# A text with two inline sites and one plain call between.

PLAIN = GuestVirtual(KERNEL_TEXT + 0x40)
TAIL = GuestVirtual(KERNEL_TEXT + 0x50)


def text_of(head: GuestVirtual | None = None) -> bytes:
    text = bytearray(b"\x90" * 0x80)

    def put(at: int, data: bytes) -> None:
        text[at - KERNEL_TEXT : at - KERNEL_TEXT + len(data)] = data

    put(AT, code(Register.R11, head=head))
    plain = b"\xe8" + (THUNKS[Register.RAX] - PLAIN - 5).to_bytes(4, "little", signed=True)
    put(PLAIN, plain)
    put(TAIL, code(Register.RBX, SiteKind.JMP, at=TAIL, head=head))
    put(KERNEL_TEXT + 0x7F, RETURN)
    return bytes(text)


def sites_of(text: bytes, size: int = 0x80) -> list[Site]:
    functions = [Function(KERNEL_TEXT, size, "f", None)]
    return scan(text, KERNEL_TEXT, ALL_THUNKS, functions).sites


BOTH = [declared(AT, Register.R11), declared(TAIL, Register.RBX, SiteKind.JMP)]


def joined(text: bytes, declarations: list[Declaration]) -> tuple[dict[int, Site], list[str]]:
    sites, refused = with_inline_parts(sites_of(text), declarations, text, KERNEL_TEXT, ALL_THUNKS)
    return {site.address: site for site in sites}, list(refused)


def test_the_branch_is_no_site_and_the_slow_path_has_an_inline_part() -> None:
    assert len(sites_of(text_of())) == 5
    key = Key(Register.RDI, 3, 2)
    sites, refused = joined(text_of(), [declared(AT, Register.R11, key=key), BOTH[1]])
    assert refused == []
    assert list(sites) == [AT + 16, PLAIN, TAIL + 14]
    call, plain, tail = sites.values()
    assert call.inline is not None
    assert tail.inline is not None
    assert (call.inline.compare, call.inline.slow, call.key) == (AT, AT + 16, key)
    assert (tail.inline.compare, tail.inline.slow, tail.key) == (TAIL, TAIL + 14, None)
    assert plain.inline is None


def test_a_site_that_is_learned_is_found_by_what_the_poke_table_says() -> None:
    built, learned = text_of(), text_of(TARGET)
    sites, _ = joined(built, BOTH)
    originals = {site.address: site.original for site in sites.values()}
    for site in sites.values():
        if site.inline is not None:
            originals[site.inline.compare] = site.inline.unlearned_compare
            originals[site.inline.branch] = site.inline.unlearned_branch
    assert joined(with_originals(learned, KERNEL_TEXT, originals), BOTH) == (sites, [])
    _, refused = joined(learned, BOTH)
    assert len(refused) == 2


def test_a_declaration_that_is_not_believed_leaves_two_thunk_sites() -> None:
    text = text_of()
    sites, refused = joined(text, [declared(AT + 1, Register.R11), declared(AT, Register.R12)])
    assert sites == {site.address: site for site in sites_of(text)}
    assert len(refused) == 2
    assert all("is not taken: its code is not what the plugin emits" in line for line in refused)


def test_a_declaration_counts_once() -> None:
    sites, refused = joined(text_of(), [BOTH[0], BOTH[0]])
    assert sites[AT + 16].inline is not None
    assert len(refused) == 1


def test_code_outside_of_every_function_is_none() -> None:
    text = text_of()
    sites, refused = with_inline_parts(
        sites_of(text, size=0x10), BOTH, text, KERNEL_TEXT, ALL_THUNKS
    )
    assert [site.inline for site in sites] == [None] * len(sites)
    assert [line.rpartition(": ")[2] for line in refused] == ["it is no code"] * 2


def test_declarations_of_other_texts_and_kinds_are_passed_over() -> None:
    text = text_of()
    elsewhere = declared(KERNEL_TEXT + len(text), Register.RAX)
    before = declared(KERNEL_TEXT - 1, Register.RAX)
    call = Declaration(DeclarationKind.STATIC_CALL, AT, PLAIN, None, None)
    sites, refused = joined(text, [elsewhere, before, call])
    assert refused == []
    assert sites == {site.address: site for site in sites_of(text)}
