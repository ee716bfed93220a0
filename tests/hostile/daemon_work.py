"""What the daemon does with a guest, in pieces, each under the eyes of a test."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.codegen.assemble import Assembler
from optpolined.codegen.decode import BLOCK_BYTES_MAX, Decoder
from optpolined.config import PolicyConfig
from optpolined.errors import OptpolinedError
from optpolined.kernel.errors import TranslationError
from optpolined.kernel.module.abi import THUNK_HEAD
from optpolined.kernel.module.attachment import Attachment
from optpolined.kernel.module.census import Census, CensusCounts, gained
from optpolined.kernel.module.counters import Counters, difference, zero_records
from optpolined.kernel.module.guards import integrity_guard
from optpolined.kernel.module.module_list import read_modules
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.steps import Write
from optpolined.patching.protocol.transport import Outcome, Transport
from optpolined.patching.recovery import blocks_in_use, find_leftovers, put_back
from optpolined.patching.thunk_heads import HeadState, ThunkHeads, census_refusal
from optpolined.session.survey import Survey
from optpolined.session.transport.stopped import StoppedTransport
from optpolined.session.transport.stops import Stopper
from tests.hostile.hostile_memory import HostileMemory

__all__ = (
    "attached_work",
    "count",
    "count_census",
    "decode_blocks",
    "is_counting",
    "named",
    "recover",
    "survey",
    "take_census",
)

_TEXT_START = (1 << 64) - (2 << 30)
_MESSAGE_MAX = 400
_DECODER = Decoder(Assembler())


@contextmanager
def named() -> Iterator[None]:
    """Nothing but an error of ours may come out, and it must be one line fit to print."""
    try:
        yield
    except OptpolinedError as error:
        text = str(error)
        assert text.isprintable()
        assert 0 < len(text) <= _MESSAGE_MAX


class _Stub:
    """Stops, resumes and writes as the gdbstub; writes outside RAM fail in the memory."""

    def __init__(self, memory: HostileMemory) -> None:
        self._memory = memory
        self.stopped = False

    def stop(self) -> bool:
        assert not self.stopped
        self.stopped = True
        return True

    def resume(self) -> None:
        self.stopped = False

    def write(self, writes: Sequence[tuple[GuestPhysical, bytes]]) -> None:
        assert self.stopped
        for address, data in writes:
            self._memory.write(address, data)


class _Watched(Transport):
    """Notes what is asked of a transport, and where that is in physical memory."""

    def __init__(self, transport: Transport, attachment: Attachment) -> None:
        self._transport = transport
        self.kind = transport.kind
        self._space = attachment.space
        self.writes: list[Write] = []
        self.places: set[int] = set()

    def write(self, writes: Sequence[Write]) -> Sequence[Outcome]:
        for write in writes:
            try:
                pieces = self._space.pieces(write.address, len(write.data))
            except TranslationError:
                continue
            for start, size in pieces:
                self.places.update(range(start, start + size))
        self.writes += writes
        return self._transport.write(writes)

    def sync(self) -> None:
        self._transport.sync()


def _watched(stub: _Stub, attachment: Attachment, memory: HostileMemory) -> _Watched:
    transport = StoppedTransport(
        stopper=Stopper(stub, lambda: 0.0),
        writer=stub,
        memory=memory,
        space=attachment.space,
        budget_seconds=1.0,
        clock=lambda: 0.0,
    )
    return _Watched(transport, attachment)


def take_census(attachment: Attachment, memory: HostileMemory, *, still: bool) -> None:
    """Arm the thunks and put them back; nothing but their heads may be written.

    ``still`` as in :func:`recover`.
    """
    stub = _Stub(memory)
    watched = _watched(stub, attachment, memory)
    header = attachment.header
    heads = ThunkHeads(header, attachment.space, watched)
    before = len(memory.changed)
    try:
        if census_refusal(header, attachment.space) is None:
            heads.arm()
        heads.leading_to_stubs()
        heads.disarm()
    finally:
        assert not stub.stopped
        allowed = {(at, header.thunk_head[register]) for register, at in header.thunk.items()}
        for write in watched.writes:
            assert allowed & {(write.address, write.expect), (write.address, write.data)}
            assert len(write.expect) == len(write.data) == THUNK_HEAD
        changed = memory.changed[before:]
        assert changed == [] or watched.writes
        assert not still or watched.places.issuperset(changed)


def is_counting(attachment: Attachment, memory: HostileMemory) -> bool:
    """Return whether some thunk leads to its census stub."""
    watched = _watched(_Stub(memory), attachment, memory)
    heads = ThunkHeads(attachment.header, attachment.space, watched)
    return HeadState.ARMED in heads.states().values()


def count_census(attachment: Attachment) -> list[CensusCounts]:
    """Read the slots of a census twice; return both readings and the difference."""
    census = Census.from_header(attachment.space.read, attachment.header)
    before = census.read()
    now = census.read()
    return [before, now, gained(before, now)]


def recover(attachment: Attachment, memory: HostileMemory, *, still: bool) -> None:
    """End a census, put back what the poke table says was left; check every write.

    ``still``: the memory does not change by itself, so that it is known where each write must go.
    """
    stub = _Stub(memory)
    watched = _watched(stub, attachment, memory)
    header = attachment.header
    table = range(header.poke_table, header.poke_table + (32 << header.poke_order))
    lengths: dict[GuestVirtual, int] = {}
    thunks = set(header.thunk.values())
    try:
        ThunkHeads(header, attachment.space, watched).disarm()
        entries = PokeEntries(attachment.space, header)
        lengths = {entry.site: entry.length for entry in entries}
        leftovers = find_leftovers(entries, attachment.space, header)
        put_back(leftovers, entries, attachment.space, watched, lambda: None)
    finally:
        assert not stub.stopped
        for write in watched.writes:
            last = write.address + len(write.data) - 1
            of_thunk = write.address in thunks and len(write.data) == THUNK_HEAD
            of_site = lengths.get(write.address) == len(write.data) or of_thunk
            assert of_site or (write.address in table and last in table)
            assert not of_site or write.address >= _TEXT_START
        assert memory.changed == [] or watched.writes
        assert not still or watched.places.issuperset(memory.changed)


def survey(attachment: Attachment) -> Survey:
    """Find symbols, modules, text, sites, and what guards them."""
    space = attachment.space
    modules = read_modules(space, attachment.header)
    originals = PokeEntries(space, attachment.header).originals()
    found = Survey(attachment, modules, PolicyConfig(), originals)
    integrity_guard(found.symbols.addresses, space.read, modules)
    for site in found.inventory.eligible:
        assert found.symbols.name(site).isprintable()
    return found


def count(attachment: Attachment) -> None:
    """Read the counters twice and take the difference."""
    counters = Counters.from_header(attachment.space.read, attachment.header)
    before = counters.snapshot(counters.capacity)
    zero_records(before)
    gained = difference(before, counters.snapshot(counters.capacity)).by_record()
    assert all(record < counters.capacity for record in gained)
    counters.int3()


def decode_blocks(attachment: Attachment) -> None:
    """Decode what the leftovers refer to."""
    space, header = attachment.space, attachment.header
    stubs = {address: register for register, address in header.learn_stub.items()}
    for at in blocks_in_use(find_leftovers(PokeEntries(space, header), space, header), header):
        block = _DECODER.decode_block(space.read(at, BLOCK_BYTES_MAX), at, stubs)
        assert 0 < block.size <= BLOCK_BYTES_MAX


def attached_work(attachment: Attachment, memory: HostileMemory, *, still: bool) -> None:
    """Everything, whatever has failed before."""
    with named():
        recover(attachment, memory, still=still)
    with named():
        survey(attachment)
    with named():
        count(attachment)
    with named():
        count_census(attachment)
    with named():
        take_census(attachment, memory, still=False)
    with named():
        decode_blocks(attachment)
