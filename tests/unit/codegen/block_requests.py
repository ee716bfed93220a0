"""Blocks that hypothesis asks for."""

from dataclasses import dataclass

from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import Assembler
from optpolined.codegen.decode import DecodedBlock, Decoder
from optpolined.codegen.forms import (
    KEY_BITS_MAX,
    MAX_LEAVES,
    MAX_TARGETS,
    Chain,
    Code,
    Key,
    Keyed,
    LearnKeys,
    Tree,
)
from optpolined.codegen.source import source
from optpolined.x86 import THUNK_REGISTERS, Register

U64 = 1 << 64
TOP = U64 - (1 << 31)

ASSEMBLER = Assembler()
DECODER = Decoder(ASSEMBLER)


@dataclass(frozen=True)
class Request:
    """The arguments of one block."""

    form: Code
    register: Register
    at: GuestVirtual
    record: int
    learn_stub: GuestVirtual
    key_table: int = 0

    def assemble(self) -> bytes:
        return ASSEMBLER.assemble(
            self.form,
            register=self.register,
            at=self.at,
            record=self.record,
            learn_stub=self.learn_stub,
            key_table=self.key_table,
        )

    def source(self) -> str:
        return source(
            self.form,
            register=self.register,
            record=self.record,
            learn_stub=self.learn_stub,
            key_table=self.key_table,
        )

    def verify(self, code: bytes) -> None:
        DECODER.verify(
            code,
            self.form,
            register=self.register,
            at=self.at,
            record=self.record,
            learn_stub=self.learn_stub,
            key_table=self.key_table,
        )

    def block(self, size: int) -> DecodedBlock:
        return DecodedBlock(self.form, self.register, self.record, size, self.key_table)


def addresses(low: int = TOP, high: int = U64 - 1) -> st.SearchStrategy[GuestVirtual]:
    return st.integers(low, high).map(GuestVirtual)


@st.composite
def chains(draw: st.DrawFn, register: Register, reachable: st.SearchStrategy[GuestVirtual]) -> Code:
    assert register is not Register.RSP
    targets = draw(st.lists(reachable, max_size=MAX_TARGETS, unique=True))
    return Chain(tuple(targets), counts_hits=bool(targets) and draw(st.booleans()))


@st.composite
def keys(draw: st.DrawFn, register: Register) -> Key:
    bits = draw(st.integers(1, KEY_BITS_MAX))
    others = [other for other in THUNK_REGISTERS if other is not register]
    return Key(draw(st.sampled_from(others)), draw(st.integers(0, 31 - bits)), bits)


@st.composite
def trees(draw: st.DrawFn, register: Register, reachable: st.SearchStrategy[GuestVirtual]) -> Code:
    """Trees by target and by key, and the learning of keys."""
    key = draw(keys(register))
    kind = draw(st.sampled_from([Tree, Keyed, LearnKeys]))
    if kind is LearnKeys:
        return LearnKeys(key)
    if kind is Tree:
        targets = st.lists(reachable, min_size=2, max_size=MAX_LEAVES, unique=True)
        return Tree(tuple(draw(targets)))
    indices = st.integers(0, (1 << key.bits) - 1)
    return Keyed(key, tuple(draw(st.dictionaries(indices, reachable, min_size=1)).items()))


@st.composite
def requests(
    draw: st.DrawFn, *, chain: bool = True, tree: bool = True, code: range = range(TOP, U64 - 1024)
) -> Request:
    """Blocks at 0xffffffffc0000000 and up; what they branch to lies in ``code``."""
    reachable = addresses(code.start, code.stop - 1)
    register = draw(st.sampled_from(THUNK_REGISTERS))
    kinds = [chains(register, reachable)] * chain + [trees(register, reachable)] * tree
    form = draw(st.one_of(kinds))
    return Request(
        form,
        register,
        draw(addresses(0xFFFFFFFFC0000000, 0xFFFFFFFFFEFFFFFF)),
        draw(st.integers(0, U64 - 1) | st.integers(0, 100)),
        draw(reachable),
        draw(st.integers(1, U64 - 1)) if isinstance(form, LearnKeys) else 0,
    )
