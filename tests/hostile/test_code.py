"""Code that a guest made up: blocks in the arena, and text to be searched for sites."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import Assembler, site_instruction
from optpolined.codegen.decode import BLOCK_BYTES_MAX, Decoder
from optpolined.codegen.errors import DecodeError
from optpolined.codegen.forms import Chain, Key, Keyed, LearnKeys, Tree
from optpolined.kernel.sites import scan as scanner
from optpolined.kernel.sites.scan import RejectionCause, scan, with_originals
from optpolined.kernel.sites.thunks import Thunks
from optpolined.x86 import THUNK_REGISTERS, Register
from tests.hostile.corruptions import WORDS, words
from tests.hostile.examples import attack

TOP = 1 << 64
BASE = 0xFFFF_FFFF_8100_0000
AT = GuestVirtual(0xFFFF_FFFF_C010_3040)
STUBS = {GuestVirtual(0xFFFF_FFFF_C010_0000 + 128 * reg): reg for reg in THUNK_REGISTERS}
ASSEMBLER = Assembler()
DECODER = Decoder(ASSEMBLER)

targets = st.integers(0, 64).map(lambda number: GuestVirtual(BASE + 64 * number))
keys = st.builds(Key, st.just(Register.R8), st.integers(0, 25), st.integers(1, 6))
forms = st.one_of(
    st.builds(
        Chain, st.lists(targets, min_size=1, max_size=5, unique=True).map(tuple), st.booleans()
    ),
    st.builds(Tree, st.lists(targets, min_size=2, max_size=5, unique=True).map(tuple)),
    st.builds(Keyed, keys, st.tuples(st.tuples(st.integers(0, 1), targets))),
    st.builds(LearnKeys, keys),
)


@st.composite
def blocks(draw: st.DrawFn) -> bytes:
    """Blocks of ours with a few bytes changed, cut, or strung together."""
    code = b""
    for _ in range(draw(st.integers(1, 2))):
        form = draw(forms)
        stub, register = draw(st.sampled_from(sorted(STUBS.items())[:7]))
        code += ASSEMBLER.assemble(
            form,
            register=register,
            at=GuestVirtual(AT + len(code)),
            record=draw(words),
            learn_stub=stub,
            key_table=draw(words.filter(bool)) if isinstance(form, LearnKeys) else 0,
        )
    data = bytearray(code)
    for place, value in draw(
        st.lists(st.tuples(st.integers(0, len(code) - 1), st.integers(0, 255)), max_size=3)
    ):
        data[place] = value
    return bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])


@given(code=blocks() | st.binary(max_size=80))
@attack("arena")
def test_any_code_in_the_arena_is_ours_to_the_byte_or_refused(code: bytes) -> None:
    try:
        block = DECODER.decode_block(code, AT, STUBS)
    except DecodeError as error:
        text = str(error)
        assert text.isprintable()
        assert len(text) < 300
        return
    assert block.size <= BLOCK_BYTES_MAX
    (stub,) = (stub for stub, register in STUBS.items() if register is block.register)
    assert code[: block.size] == ASSEMBLER.assemble(
        block.form,
        register=block.register,
        at=AT,
        record=block.record,
        learn_stub=stub,
        key_table=block.key_table,
    )


@dataclass(frozen=True)
class Function:
    start: GuestVirtual
    size: int
    name: str = "f"
    module: str | None = None


THUNKS = Thunks.one_array(
    {register: GuestVirtual(BASE + 0x10_0000 + 32 * register) for register in Register}
)


def _call(place: int, prefix: bytes, opcode: int, register: Register) -> bytes:
    original = bytes((opcode,)) + bytes(4)
    at = GuestVirtual(BASE + place + len(prefix))
    return prefix + site_instruction(original, at, GuestVirtual(BASE + 0x10_0000 + 32 * register))


PREFIXES = (b"", b"", b"\x2e", b"\x2e\x2e", b"\x66", b"\xf2", b"\x48")
SOUP = (b"\x55", b"\x90", b"\x9d", b"\x48\xb8", b"\x0f\x1f", b"\xe8\xe9", b"\x2e", b"\xc3", b"\x06")


def _text(code: bytes) -> bytes:
    """Instructions, calls to thunks behind any prefix, and anything, from two bytes each."""
    text = b""
    for kind, pick in zip(code[::2], code[1::2], strict=False):
        if kind & 1:
            opcode = 0xE8 | kind >> 1 & 1
            register = Register(pick & 15)
            text += _call(len(text), PREFIXES[kind % len(PREFIXES)], opcode, register)
        else:
            text += SOUP[pick % len(SOUP)] if kind & 2 else bytes((pick,))
    return text


def _functions(code: bytes) -> list[Function]:
    """A function from each four bytes: somewhere in the text, or anywhere."""
    return [
        Function(
            GuestVirtual(BASE + start - 8 if kind & 3 else WORDS[start % len(WORDS)]),
            WORDS[size % len(WORDS)] if kind & 0xC0 == 0xC0 else size + low,
        )
        for kind, start, size, low in zip(*[iter(code)] * 4, strict=False)
    ]


texts = st.binary(max_size=48).map(_text)
functions_of_any = st.binary(max_size=32).map(_functions)


@given(text=texts, functions=functions_of_any)
@attack("text", share=0.8)
def test_any_text_gives_whole_sites_in_linear_time(text: bytes, functions: list[Function]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        decoded = _count_decoded(patch)
        found = scan(text, GuestVirtual(BASE), THUNKS, functions)
    assert decoded() <= 2 * len(text) + 30 * len(functions)
    for site in found.sites:
        offset = site.address - BASE
        assert text[offset : offset + site.length] == site.original
        assert site.length - 5 == (site.original[:1] == b"\x2e")
        assert site.original[-5] in (0xE8, 0xE9)
        rel32 = int.from_bytes(site.original[-4:], "little", signed=True)
        went = GuestVirtual(site.address + site.length + rel32)
        assert THUNKS.register_at(went, site.kind) is site.register
    assert all(rejected.reason in RejectionCause for rejected in found.rejected)
    addresses = [site.address for site in found.sites]
    assert addresses == sorted(set(addresses))


def _count_decoded(patch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the bytes that the scanner decodes."""
    total = 0
    original = scanner._instructions

    def counted(*arguments: object) -> Iterator[tuple[int, int, str]]:
        nonlocal total
        for instruction in original(*arguments):  # type: ignore[arg-type]
            total += instruction[1]
            yield instruction

    patch.setattr(scanner, "_instructions", counted)
    return lambda: total


@given(
    text=st.binary(max_size=64),
    originals=st.dictionaries(
        st.integers(BASE - 9, BASE + 70).map(GuestVirtual) | words.map(GuestVirtual),
        st.binary(max_size=8),
        max_size=8,
    ),
)
@attack("text", share=0.2)
def test_originals_of_anywhere_change_no_length(
    text: bytes, originals: dict[GuestVirtual, bytes]
) -> None:
    assert len(with_originals(text, GuestVirtual(BASE), originals)) == len(text)
