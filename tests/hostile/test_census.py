"""A census of a guest that lies: its slots are read within bounds, its thunks change in place."""

from hypothesis import given

from optpolined.addresses import GuestVirtual
from optpolined.kernel.sites.attribution import Attribution
from optpolined.patching.thunk_heads import census_refusal
from tests.hostile.corruptions import corruptions
from tests.hostile.daemon_work import (
    count_census,
    is_counting,
    named,
    recover,
    survey,
    take_census,
)
from tests.hostile.examples import attack
from tests.hostile.hostile_memory import Change, HostileMemory
from tests.hostile.whole_guest import GUEST, SITES

TOP = 1 << 64
COUNT_MAX = 1 << 48
SLOTS_MAX = 2 * 64
SURVEY = survey(GUEST.attachment(GUEST.memory))


def entry_of(address: GuestVirtual) -> GuestVirtual | None:
    function = SURVEY.symbols.function(address)
    return None if function is None else function.start


ATTRIBUTION = Attribution(SURVEY.inventory.eligible, entry_of, SURVEY.text_at)


@given(
    changes=corruptions(
        "offsets",
        "census chunks",
        "census slots",
        "census slots",
        "census other",
        moving=True,
        most=12,
        last=30,
    )
)
@attack("census")
def test_any_slots_give_bounded_counts_at_sites_that_exist(changes: list[Change]) -> None:
    attachment = GUEST.attachment(HostileMemory(changes, reads_max=200))
    with named():
        for counts in count_census(attachment):
            assert len(counts.pairs()) <= SLOTS_MAX
            assert 0 <= counts.total <= (SLOTS_MAX + 2) * COUNT_MAX
            for returns_to, target, calls in counts.pairs():
                assert min(returns_to, target) >= TOP - (2 << 30)
                assert 0 <= calls <= COUNT_MAX
            found = ATTRIBUTION.attribute(counts.pairs())
            assert found.sites.keys() <= SURVEY.inventory.eligible.keys()
            assert found.nominated.keys() <= SURVEY.inventory.eligible.keys()
            of_sites = sum(sum(calls.values()) for calls in found.sites.values())
            of_pairs = sum(calls for _, _, calls in counts.pairs())
            assert of_sites + found.tail_calls + found.foreign == of_pairs


@given(changes=corruptions("thunks", "paging", "text", moving=True, most=12, last=60))
@attack("thunks", share=0.5)
def test_any_thunks_are_written_at_their_heads_only(changes: list[Change]) -> None:
    memory = HostileMemory(changes)
    still = all(change.after == 0 for change in changes)
    with named():
        take_census(GUEST.attachment(memory), memory, still=still)


@given(changes=corruptions("thunks", most=3))
@attack("thunks", share=0.5)
def test_after_a_recovery_no_thunk_is_armed(changes: list[Change]) -> None:
    memory = HostileMemory(changes)
    attachment = GUEST.attachment(memory)
    with named():
        recover(attachment, memory, still=True)
        refusal = census_refusal(attachment.header, attachment.space)
        assert refusal is None or "another program" in refusal
    assert not is_counting(attachment, memory)


def test_the_guest_that_is_attacked_has_a_census_to_read() -> None:
    counts = count_census(GUEST.attachment(GUEST.memory))[0]
    assert len(counts.calls) == len(SITES)
    assert counts.other == 6
    found = ATTRIBUTION.attribute(counts.pairs())
    assert len(found.sites) >= 4
    assert census_refusal(GUEST.header, GUEST.attachment(GUEST.memory).space) is None
