"""Why sites are left alone."""

import struct
from collections.abc import Sequence

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.api.refusal import Refusal
from optpolined.kernel.errors import BlacklistError, SymbolsError
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.sites.exclusions import (
    Exclusions,
    TextRange,
    discover,
    read_kprobe_blacklist,
)
from optpolined.kernel.sites.scan import Site
from optpolined.x86 import Register

TEXT = 0xFFFFFFFF81000000
OWN = TextRange(GuestVirtual(0xFFFFFFFFC0200000), GuestVirtual(0xFFFFFFFFC0500000))
HEAD = GuestVirtual(0xFFFFFFFF82B38800)
HEAP = 0xFFFF888000100000

SYMBOLS = {
    "__noinstr_text_start": TEXT + 0x1000,
    "__noinstr_text_end": TEXT + 0x2000,
    "__kprobes_text_start": TEXT + 0x2000,
    "__kprobes_text_end": TEXT + 0x2000,
    "__cpuidle_text_start": TEXT + 0x3000,
    "__cpuidle_text_end": TEXT + 0x4000,
    "__entry_text_start": TEXT + 0x4000,
    "__entry_text_end": TEXT + 0x5000,
    "__indirect_thunk_start": TEXT + 0x5000,
    "__indirect_thunk_end": TEXT + 0x6000,
    "_sinittext": TEXT + 0x7000,
    "_einittext": TEXT + 0x8000,
    "kprobe_blacklist": HEAD,
}


def site(
    address: int, function: str = "f", module: str | None = None, *, live_flags: bool = False
) -> Site:
    return Site(
        address=GuestVirtual(address),
        original=b"\xe8\0\0\0\0",
        kind=SiteKind.CALL,
        register=Register.RAX,
        thunk=GuestVirtual(TEXT),
        function=function,
        module=module,
        live_flags=live_flags,
    )


class Memory:
    """Kernel memory that holds a kprobe_blacklist."""

    def __init__(self, ranges: Sequence[tuple[int, int]] = ()) -> None:
        nodes = [int(HEAD), *(HEAP + 64 * index for index in range(len(ranges)))]
        self.words: dict[int, bytes] = {}
        for index, node in enumerate(nodes):
            links = (nodes[(index + 1) % len(nodes)], nodes[index - 1])
            self.words[node] = struct.pack("<2Q", *links)
            if index:
                self.words[node] += struct.pack("<2Q", *ranges[index - 1])

    def read(self, address: GuestVirtual, size: int) -> bytes:
        data = self.words[address]
        assert len(data) == size
        return data


def addresses(name: str) -> Sequence[GuestVirtual]:
    return [GuestVirtual(SYMBOLS[name])] if name in SYMBOLS else []


@pytest.fixture
def exclusions() -> Exclusions:
    memory = Memory([(TEXT + 0x9000, TEXT + 0x9100), (TEXT + 0x9100, TEXT + 0x9180)])
    return discover(addresses, memory.read, OWN)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        (TEXT, None),
        (TEXT + 0x0FFF, None),
        (TEXT + 0x1000, Refusal.NOINSTR),
        (TEXT + 0x1FFF, Refusal.NOINSTR),
        (TEXT + 0x2000, None),
        (TEXT + 0x3000, Refusal.CPUIDLE),
        (TEXT + 0x4000, Refusal.ENTRY),
        (TEXT + 0x5FFF, Refusal.THUNK),
        (TEXT + 0x6000, None),
        (TEXT + 0x7000, Refusal.INIT),
        (TEXT + 0x9000, Refusal.NOKPROBE),
        (TEXT + 0x917F, Refusal.NOKPROBE),
        (TEXT + 0x9180, None),
        (OWN.start, Refusal.OWN),
        (OWN.end - 1, Refusal.OWN),
        (OWN.end, None),
        (0, None),
        ((1 << 64) - 1, None),
    ],
)
def test_sections(exclusions: Exclusions, where: int, reason: Refusal | None) -> None:
    assert exclusions.reason(site(where)) is reason


@pytest.mark.parametrize(
    "function",
    ["notify_die", "notifier_call_chain", "kprobe_int3_handler", "do_int3.cold", "get_kprobe"],
)
def test_the_way_to_our_handler(exclusions: Exclusions, function: str) -> None:
    assert exclusions.reason(site(TEXT, function)) is Refusal.INT3_PATH
    assert exclusions.reason(site(TEXT, function, "mod")) is None
    assert exclusions.reason(site(TEXT, f"my_{function}")) is None


def test_live_flags_come_first(exclusions: Exclusions) -> None:
    assert exclusions.reason(site(TEXT + 0x1000, live_flags=True)) is Refusal.LIVE_FLAGS


@pytest.mark.parametrize("name", ["__noinstr_text_start", "__entry_text_end"])
def test_a_kernel_that_does_not_say_what_is_unsafe(name: str) -> None:
    def without(wanted: str) -> Sequence[GuestVirtual]:
        return [] if wanted == name else addresses(wanted)

    with pytest.raises(SymbolsError, match=name):
        discover(without, Memory().read, OWN)


def test_a_kernel_without_kprobes() -> None:
    def without(wanted: str) -> Sequence[GuestVirtual]:
        return [] if "kprobe" in wanted or "cpuidle" in wanted else addresses(wanted)

    found = discover(without, Memory().read, OWN)
    assert found.reason(site(TEXT + 0x9000)) is None
    assert found.reason(site(TEXT, "notify_die")) is Refusal.INT3_PATH


def test_a_symbol_that_stands_twice() -> None:
    def twice(wanted: str) -> Sequence[GuestVirtual]:
        return [*addresses(wanted), *addresses(wanted)]

    with pytest.raises(SymbolsError, match="2 symbols named"):
        discover(twice, Memory().read, OWN)


def test_blacklist_in_order() -> None:
    ranges = [(TEXT + 16 * index, TEXT + 16 * index + 8) for index in range(400)]
    assert read_kprobe_blacklist(Memory(ranges).read, HEAD) == ranges
    assert read_kprobe_blacklist(Memory().read, HEAD) == []


def test_blacklist_that_changes_under_the_walk() -> None:
    memory = Memory([(1, 2), (3, 4)])
    whole = dict(memory.words)
    memory.words[HEAP + 64] = struct.pack("<4Q", HEAD, HEAP + 128, 3, 4)
    reads = 0

    def read(address: GuestVirtual, size: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads == 4:
            memory.words = whole
        return memory.read(address, size)

    assert read_kprobe_blacklist(read, HEAD) == [(1, 2), (3, 4)]


def test_blacklist_whose_links_never_agree() -> None:
    memory = Memory([(1, 2), (3, 4)])
    memory.words[HEAP] = struct.pack("<4Q", HEAP, HEAD, 1, 2)
    with pytest.raises(BlacklistError, match="not whole"):
        read_kprobe_blacklist(memory.read, HEAD)


def test_blacklist_without_end() -> None:
    """A guest that makes the links up as they are read."""
    before = int(HEAD)

    def read(address: GuestVirtual, size: int) -> bytes:
        nonlocal before
        previous, before = before, int(address)
        return struct.pack("<4Q", address + 64, previous, 0, 0)[:size]

    with pytest.raises(BlacklistError, match="longer than"):
        read_kprobe_blacklist(read, HEAD)


def test_overlapping_ranges() -> None:
    ranges = [(0x100, 0x300), (0x180, 0x200), (0x300, 0x310), (0x400, 0x401)]
    found = Exclusions(
        (Refusal.NOKPROBE, TextRange(GuestVirtual(start), GuestVirtual(end)))
        for start, end in ranges
    )
    inside = [address for address in range(0x500) if found.reason(site(address))]
    assert inside == [*range(0x100, 0x310), 0x400]
