"""The site scanner against recorded functions, and against text made to mislead it."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.sites.scan import RejectionCause, Scan, scan, with_originals
from optpolined.kernel.sites.thunks import Thunks
from optpolined.x86 import Register

BASE = GuestVirtual(0xFFFFFFFF81000000)
# __x86_indirect_thunk_array of the kernel that the functions were recorded from.
THUNK_ARRAY = 0xFFFFFFFF81E01740
ADDRESS_OF = {register: GuestVirtual(THUNK_ARRAY + 32 * register) for register in Register}
THUNKS = Thunks.one_array(ADDRESS_OF)


@dataclass(frozen=True)
class Function:
    start: GuestVirtual
    size: int
    name: str = "f"
    module: str | None = None


@dataclass(frozen=True)
class Recorded:
    """A function of Debian's 6.1.0-56-cloud-amd64, with its one site."""

    name: str
    start: int
    code: str
    site: int
    kind: SiteKind
    register: Register
    length: int


RECORDED = (
    Recorded(
        "notifier_call_chain",
        0xFFFFFFFF810C4900,
        "e82b6efaff4156415541545553488b1f85c9744e4989f44989d589cd4d89c64885db750eeb3c83ed014885db"
        "742785ed74234889df4c89ea488b5b084c89e6488b07e8f9cdd3004d85f6740441830601f6c48074d15b5d41"
        "5c415d415ee98ed5d30031c0ebef662e0f1f840000000000",
        0xFFFFFFFF810C4942,
        SiteKind.CALL,
        Register.RAX,
        5,
    ),
    Recorded(
        "module_attr_store",
        0xFFFFFFFF810BCF00,
        "e82be8faff4c8b46184889f84889f74d85c074104889c62ee82349d4004898e9cc4fd40048c7c0fbffffffe9"
        "c04fd400",
        0xFFFFFFFF810BCF17,
        SiteKind.CALL,
        Register.R8,
        6,
    ),
    Recorded(
        "x86_pmu_filter_match",
        0xFFFFFFFF81007220,
        "e80b450600488b0514d5c2014885c07406e90aa5df00ccb801000000e9afacdf0066662e0f1f840000000000"
        "0f1f4000",
        0xFFFFFFFF81007231,
        SiteKind.JMP,
        Register.RAX,
        5,
    ),
    Recorded(
        "balloon_page_migrate",
        0xFFFFFFFF81340E70,
        "e8bba8d2ff488b462889d183fa0374144889f24c8b40204889fe4889c72ee9ad09ac00ccb8eaffffffe95210"
        "ac006690",
        0xFFFFFFFF81340E8D,
        SiteKind.JMP,
        Register.R8,
        6,
    ),
)

# kvm.ko's fastop(), which loads the flags for its target (arch/x86/kvm/emulate.c); the site is 87
# bytes in, and its displacement is as the module's relocation leaves it.
FASTOP = bytes.fromhex(
    "e8000000004c8b4f104989f84c89cf81e7d50800004881cf0002000041f68080000000017513418b8014010000f3"
    "480fbcc048c1e0044801c6498b8040010000498b90c00000004981e12af7ffff498b8800010000579de800000000"
    "9c5f81e7d50800004989804001000031c04909f9498990c00000004d8948104885f67405e90000000041c7403000"
    "000000b802000000e900000000"
)
FASTOP_SITE = 87


def branch(register: Register, at: int, *, opcode: int = 0xE8) -> bytes:
    """The five bytes that call, or jump to, a thunk from ``at``, an offset from BASE."""
    displacement = ADDRESS_OF[register] - (BASE + at + 5)
    return bytes([opcode]) + displacement.to_bytes(4, "little", signed=True)


def whole(text: bytes) -> list[Function]:
    return [Function(BASE, len(text))]


def reasons(result: Scan) -> list[RejectionCause]:
    return [rejected.reason for rejected in result.rejected]


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.name)
def test_recorded_function(recorded: Recorded) -> None:
    code = bytes.fromhex(recorded.code)
    start = GuestVirtual(recorded.start)
    result = scan(code, start, THUNKS, [Function(start, len(code), recorded.name)])
    assert result.rejected == []
    (site,) = result.sites
    assert (site.address, site.kind, site.register, site.length) == (
        recorded.site,
        recorded.kind,
        recorded.register,
        recorded.length,
    )
    offset = recorded.site - recorded.start
    assert site.original == code[offset : offset + recorded.length]
    assert site.thunk == ADDRESS_OF[recorded.register]
    assert (site.function, site.module, site.live_flags) == (recorded.name, None, False)


def test_flags_loaded_before_the_call_are_seen() -> None:
    before, after = FASTOP[:FASTOP_SITE], FASTOP[FASTOP_SITE + 5 :]
    text = before + branch(Register.RSI, FASTOP_SITE) + after
    (site,) = scan(text, BASE, THUNKS, [Function(BASE, len(text), "fastop", "kvm")]).sites
    assert (site.address - BASE, site.register, site.live_flags) == (87, Register.RSI, True)
    assert site.module == "kvm"


def test_flags_loaded_long_before_are_not_live() -> None:
    text = b"\x9d" + b"\x90" * 17
    text += branch(Register.RAX, len(text))
    (site,) = scan(text, BASE, THUNKS, whole(text)).sites
    assert not site.live_flags


def test_every_register_and_both_kinds() -> None:
    text = b""
    expected = []
    for register in Register:
        for opcode, kind in ((0xE8, SiteKind.CALL), (0xE9, SiteKind.JMP)):
            expected.append((BASE + len(text), kind, register))
            text += branch(register, len(text), opcode=opcode) + b"\xcc"
    sites = scan(text, BASE, THUNKS, whole(text)).sites
    assert [(site.address, site.kind, site.register) for site in sites] == expected


def test_a_pattern_inside_a_constant_is_no_site() -> None:
    text = b"\x48\xb8" + branch(Register.RAX, 2) + b"\0\0\0" + b"\xc3"
    result = scan(text, BASE, THUNKS, whole(text))
    assert result.sites == []
    assert reasons(result) == [RejectionCause.OFF_BOUNDARY]
    assert result.rejected[0].address == BASE + 2


def test_a_pattern_that_ends_an_instruction_is_no_site() -> None:
    # mov %eax, disp32(%rax) with the pattern in disp32 and the byte before it: e8 is the modrm.
    text = b"\x89" + branch(Register.RAX, 1)
    result = scan(text + b"\xc3", BASE, THUNKS, whole(text))
    assert result.sites == []
    assert reasons(result) != []


def test_another_prefix_is_no_site() -> None:
    text = b"\x3e" + branch(Register.RAX, 1)
    assert reasons(scan(text, BASE, THUNKS, whole(text))) == [RejectionCause.PREFIX]
    two = b"\x2e\x2e" + branch(Register.RAX, 2)
    assert reasons(scan(two, BASE, THUNKS, whole(two))) == [RejectionCause.PREFIX]


def test_what_follows_bytes_that_are_no_instruction_is_no_site() -> None:
    text = b"\x06" + branch(Register.RAX, 1)
    assert reasons(scan(text, BASE, THUNKS, whole(text))) == [RejectionCause.UNDECODABLE]


def test_outside_every_function() -> None:
    text = branch(Register.RAX, 0) + b"\x90" * 11 + branch(Register.RCX, 16)
    functions = [Function(BASE, 5), Function(GuestVirtual(BASE - 64), 1 << 20)]
    result = scan(text, BASE, THUNKS, functions)
    assert [site.register for site in result.sites] == [Register.RAX]
    assert reasons(result) == [RejectionCause.NO_FUNCTION]
    assert reasons(scan(text, BASE, THUNKS, [])) == [RejectionCause.NO_FUNCTION] * 2


def test_aliases_and_inner_labels() -> None:
    text = b"\x90" * 8 + branch(Register.RBX, 8) + b"\xc3"
    outer = Function(BASE, len(text), "outer")
    alias = Function(BASE, 1, "alias")
    label = Function(GuestVirtual(BASE + 4), 2, "label")
    for functions in ([outer, alias, label], [label, alias, outer]):
        (site,) = scan(text, BASE, THUNKS, functions).sites
        assert site.function == "outer"


def test_the_nearest_function_decides() -> None:
    # Decoded from the start, the site is part of a constant; but a function begins there.
    text = b"\x48\xb8" + b"\x90" * 4 + branch(Register.RDX, 6)
    inner = Function(GuestVirtual(BASE + 6), 5, "inner")
    (site,) = scan(text, BASE, THUNKS, [Function(BASE, len(text), "outer"), inner]).sites
    assert site.function == "inner"


def test_text_at_the_end_of_the_address_space() -> None:
    base = GuestVirtual((1 << 64) - 8)
    displacement = (THUNK_ARRAY - (base + 5)) & 0xFFFFFFFF
    text = b"\xe8" + displacement.to_bytes(4, "little") + b"\x90\x90\xc3"
    (site,) = scan(text, base, THUNKS, [Function(base, 8)]).sites
    assert site.thunk == THUNK_ARRAY


@pytest.mark.parametrize("size", range(6))
def test_short_text(size: int) -> None:
    text = branch(Register.RAX, 0)[:size]
    assert len(scan(text, BASE, THUNKS, whole(text)).sites) == (size == 5)


def test_without_thunks() -> None:
    text = branch(Register.RAX, 0)
    assert scan(text, BASE, Thunks([]), whole(text)) == Scan([], [])


def test_a_long_function_is_decoded_in_pieces() -> None:
    # 15-byte instructions, more than one call of capstone takes, and then a site.
    text = bytes.fromhex("6666666666662e0f1f840000000000") * 9000
    text += branch(Register.RBP, len(text))
    (site,) = scan(text, BASE, THUNKS, whole(text)).sites
    assert site.register is Register.RBP


@given(
    st.binary(max_size=200),
    st.lists(st.tuples(st.integers(-50, 250), st.integers(0, (1 << 64) - 1)), max_size=8),
    st.lists(st.tuples(st.integers(0, 199), st.sampled_from(Register)), max_size=8),
)
def test_hostile_text_never_raises(
    text: bytes, spans: list[tuple[int, int]], planted: list[tuple[int, Register]]
) -> None:
    for offset, register in planted:
        if offset + 5 <= len(text):
            text = text[:offset] + branch(register, offset) + text[offset + 5 :]
    functions = [Function(GuestVirtual(BASE + start), size) for start, size in spans]
    result = scan(text, BASE, THUNKS, functions)
    for site in result.sites:
        offset = site.address - BASE
        assert text[offset : offset + site.length] == site.original
        assert site.original[-5:] == branch(
            site.register, offset + site.length - 5, opcode=site.original[-5]
        )


def test_originals_are_put_over_patched_text() -> None:
    original = branch(Register.RAX, 3)
    text = b"\x90" * 3 + b"\xe8\0\0\0\0" + b"\xc3"
    originals = {
        GuestVirtual(BASE + 3): original,
        GuestVirtual(BASE + 6): original,
        GuestVirtual(BASE - 1): original,
    }
    restored = with_originals(text, BASE, originals)
    assert restored == b"\x90" * 3 + original + b"\xc3"
    assert len(scan(restored, BASE, THUNKS, whole(restored)).sites) == 1
