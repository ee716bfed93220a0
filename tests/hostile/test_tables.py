"""What the header leads to: symbols, modules, poke table, counters, lists, code."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import TranslationError
from optpolined.kernel.module.abi import INLINE_BRANCH, RequestOp, SiteKind
from optpolined.kernel.module.mailbox import Mailbox, MailboxWrite
from optpolined.kernel.module.module_list import MODULE_SYMBOLS_MAX, read_modules
from optpolined.kernel.module.poke_table import ENTRY_SIZE, home
from optpolined.kernel.sites.exclusions import TextRange, discover, read_kprobe_blacklist
from optpolined.kernel.symbols.kallsyms import SYMBOL_NAME_MAX
from optpolined.kernel.symbols.symbols import Symbols
from tests.hostile.corruptions import corruptions
from tests.hostile.daemon_work import count, named, recover
from tests.hostile.examples import attack
from tests.hostile.hostile_memory import Change, HostileMemory
from tests.hostile.whole_guest import GUEST
from tests.unit.kernel.fake_guest import KERNEL_TEXT, MODULE_TEXT, TABLES

KALLSYMS = [name for name in GUEST.regions if name.startswith("kallsyms_")]
COUNTERS = ("offsets", "chunks", "counters", "statistics")
TOP = 1 << 64


@given(changes=corruptions(*KALLSYMS, moving=True, last=12))
@attack("kallsyms")
def test_any_kallsyms_give_printable_names(changes: list[Change]) -> None:
    attachment = GUEST.attachment(HostileMemory(changes))
    with named():
        symbols = Symbols.load(attachment.space, attachment.vmcoreinfo)
        for function in symbols.functions_in(GuestVirtual(0), TOP):
            assert 0 < function.size < TOP
            assert 0 < len(function.name) <= SYMBOL_NAME_MAX
            assert function.name.isprintable()
            assert function.name.isascii()


KERNEL = Symbols.load(GUEST.attachment(GUEST.memory).space, GUEST.vmcoreinfo)


@given(changes=corruptions("modules", "status", moving=True, last=12))
@attack("module list")
def test_any_list_of_modules_is_within_its_bounds(changes: list[Change]) -> None:
    attachment = GUEST.attachment(HostileMemory(changes, reads_max=200))
    with named():
        modules = read_modules(attachment.space, attachment.header)
        assert len(modules) <= attachment.header.modules_capacity
        for module in modules:
            assert 0 < module.size <= TOP - module.text
            assert module.name.isprintable()
            assert module.nr_symbols <= MODULE_SYMBOLS_MAX


@given(changes=corruptions("module symbols", "module strings", "modules", moving=True, last=60))
@attack("module symbols")
def test_any_module_symbols_are_functions_within_its_text(changes: list[Change]) -> None:
    attachment = GUEST.attachment(HostileMemory(changes))
    with named():
        modules = read_modules(attachment.space, attachment.header)
        KERNEL.set_modules(attachment.space, modules)
        for function in KERNEL.functions_in(GuestVirtual(0), TOP):
            assert function.start < function.start + function.size <= TOP
            assert KERNEL.name(function.start).isprintable()
            assert function.module in {None, *(module.name for module in modules)}


@given(changes=corruptions("poke table", "text", "veth text", "arena", moving=True, last=200))
@attack("poke table", share=0.5)
def test_recovery_from_any_table_over_any_text(changes: list[Change]) -> None:
    memory = HostileMemory(changes)
    still = all(change.after == 0 for change in changes)
    with named():
        recover(GUEST.attachment(memory), memory, still=still)


@dataclass(frozen=True)
class Ends:
    """Of the instruction at a forged site: its first byte, and where it branches to."""

    head: int | None
    target: int


@dataclass(frozen=True)
class Forged:
    """An entry that the guest made up, and what it put at the site to make the daemon believe."""

    site: int
    original: bytes
    live: bytes
    kind: int
    state: int

    def changes(self) -> list[Change]:
        entry = (
            self.site.to_bytes(8, "little")
            + KERNEL_TEXT.to_bytes(8, "little")
            + bytes((self.kind, self.state, len(self.original), 0, 0, 0, 0, 0))
            + self.original[:8].ljust(8, b"\0")
        )
        table = GUEST.regions["poke table"]
        place = home(GuestVirtual(self.site), GUEST.raw.poke_order)
        made = [Change(0, table.physical + place * ENTRY_SIZE, entry)]
        with suppress(TranslationError):
            physical = GUEST.tables.space.translate(GuestVirtual(self.site))
            made.append(Change(0, physical, self.live))
        return made


def _forged(site: int, original: bytes, kind: int, state: int, ends: Ends) -> Forged:
    """What stands at ``site`` starts and ends as ``ends`` has it."""
    displacement = (ends.target - site - len(original)) & 0xFFFF_FFFF
    live = bytearray(original[:-4] + displacement.to_bytes(4, "little"))
    if ends.head is not None:
        live[0] = ends.head
    return Forged(site, original, bytes(live), kind, state)


ARENA = GUEST.raw.arena
FORGED_SITES = (
    *(KERNEL_TEXT + 0x1000, KERNEL_TEXT + 0x1FFD, KERNEL_TEXT + 0x1001, MODULE_TEXT, ARENA),
    *(TABLES, GUEST.header.address + 8, TOP - 5, TOP - 4, 0xFFFF_FFFF_8220_0000),
)
COMPARE = b"\x48\x81\xf8\xff\xff\xff\xff"
ORIGINALS = (
    *(b"", b"\xe8", b"\xe8\0\0\0\0", b"\xe9\1\2\3\4", b"\x2e\xe8\0\0\0\0", b"\x2e\xe9\0\0\0\0"),
    *(b"\xcc\0\0\0\0", b"\xcc" * 6, b"\x90" * 8, b"\xeb\xfe", b"\x48\xb8" + bytes(6), COMPARE),
)
TAILS = (ARENA, ARENA + 0x40, ARENA + 0xFFFF, ARENA - 1, 0, TOP - 1)
HEADS = (None, None, 0xCC, 0xCC, 0xE8)
KINDS = (0, *SiteKind, SiteKind.COMPARE, 255)
STATES = (0, 1, 1, 2, 255)


def _decoded(code: bytes) -> list[Forged]:
    """A forged entry from each seven bytes; a compare comes with the branch behind it."""
    forged = []
    for site, low, original, tail, head, kind, state in zip(*[iter(code)] * 7, strict=False):
        address = FORGED_SITES[site % len(FORGED_SITES)]
        if not site & 0x80:
            address = KERNEL_TEXT + 64 * site + low
        ends = Ends(HEADS[head % len(HEADS)], TAILS[tail % len(TAILS)])
        of_kind, in_state = KINDS[kind % len(KINDS)], STATES[state % len(STATES)]
        if of_kind == SiteKind.COMPARE:
            branch_at = (address + INLINE_BRANCH) % TOP
            branch = _forged(
                branch_at, ORIGINALS[2 + original % 2], SiteKind.BRANCH, in_state, ends
            )
            forged += [_forged(address, COMPARE, of_kind, in_state, ends), branch]
        else:
            old = ORIGINALS[original % len(ORIGINALS)]
            forged.append(_forged(address, old, of_kind, in_state, ends))
    return forged


forgeries = st.binary(min_size=7, max_size=35).map(_decoded)


@given(forged=forgeries)
@attack("poke table", share=0.5)
def test_forged_entries_lead_to_no_other_write(forged: list[Forged]) -> None:
    memory = HostileMemory(change for entry in forged for change in entry.changes())
    with named():
        recover(GUEST.attachment(memory), memory, still=True)


@given(changes=corruptions(*COUNTERS, moving=True, last=120))
@attack("counters")
def test_any_counters_are_read_within_bounds(changes: list[Change]) -> None:
    with named():
        count(GUEST.attachment(HostileMemory(changes)))


class _Clock:
    """Time passes only in calls of sleep."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@given(
    changes=corruptions("status", moving=True, most=12, last=60),
    ops=st.lists(st.sampled_from(RequestOp), min_size=1, max_size=2),
)
@attack("mailbox")
def test_a_mailbox_that_changes_under_the_request(
    changes: list[Change], ops: list[RequestOp]
) -> None:
    memory = HostileMemory(changes)
    attachment = GUEST.attachment(memory)
    clock = _Clock()
    header = attachment.header
    allowed = {header.field("request_op"), header.field("request_seq")}

    def write(writes: Sequence[MailboxWrite]) -> None:
        for item in writes:
            assert item.address in allowed
            assert len(item.expected) == len(item.data) == 4
            memory.write(attachment.space.translate(item.address), item.data)

    mailbox = Mailbox(attachment.space, header, write, clock=clock.time, sleep=clock.sleep)
    for op in ops:
        began = clock.now
        with named():
            mailbox.request(op, timeout_seconds=0.05)
        assert clock.now - began <= 0.051


@given(changes=corruptions("blacklist", moving=True, most=10, last=80))
@attack("kprobe blacklist")
def test_any_blacklist_ends(changes: list[Change]) -> None:
    space = GUEST.attachment(HostileMemory(changes)).space
    own = TextRange(MODULE_TEXT, GuestVirtual(ARENA))
    with named():
        discover(KERNEL.addresses, space.read, own)


def test_a_blacklist_that_is_made_up_as_it_is_read() -> None:
    reads = 0

    def read(address: GuestVirtual, size: int) -> bytes:
        nonlocal reads
        reads += 1
        return ((address + 64) % TOP).to_bytes(8, "little").ljust(size, b"\0")

    with named():
        read_kprobe_blacklist(read, KERNEL_TEXT)
    assert reads <= 3 * (1 << 16) + 6
