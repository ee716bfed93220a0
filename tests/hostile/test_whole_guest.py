"""Everything composed: the real way from registers to sites, over a guest that lies anywhere."""

from hypothesis import given

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module.attachment import Attachment, attach
from tests.hostile.corruptions import corruptions
from tests.hostile.daemon_work import attached_work, count, decode_blocks, named, recover, survey
from tests.hostile.examples import attack
from tests.hostile.hostile_memory import Change, HostileMemory
from tests.hostile.whole_guest import GUEST, SITES


def test_the_guest_is_well_formed_where_nothing_is_corrupted() -> None:
    memory = HostileMemory(())
    attachment = attach(memory, GUEST.registers)
    decode_blocks(attachment)
    recover(attachment, memory, still=True)
    for site in SITES[:2]:
        assert attachment.space.read(site.address, len(site.original)) == site.original
    found = survey(attachment)
    assert len(found.symbols.functions_in(GuestVirtual(0), 1 << 64)) == 17
    assert {site.address for site in SITES} <= found.inventory.eligible.keys()
    assert found.inventory.found == 9
    count(attachment)


@given(changes=corruptions(*GUEST.regions))
@attack("all at once", share=0.25)
def test_a_guest_with_anything_anywhere(changes: list[Change]) -> None:
    _the_whole_way(changes, still=True)


@given(changes=corruptions(*GUEST.regions, moving=True))
@attack("all at once", share=0.25)
def test_a_guest_that_changes_as_it_is_read(changes: list[Change]) -> None:
    _the_whole_way(changes, still=False)


def _the_whole_way(changes: list[Change], *, still: bool) -> None:
    memory = HostileMemory(changes, reads_max=300_000, bytes_max=64 << 20)
    attachment: Attachment | None = None
    with named():
        attachment = attach(memory, GUEST.registers)
    if attachment is not None:
        attached_work(attachment, memory, still=still)
