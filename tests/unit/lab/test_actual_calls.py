"""The calls behind a trace: what was counted, and what is taken to have been made."""

from collections.abc import Mapping
from dataclasses import replace

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form, Tree
from optpolined.lab.actual_calls import UNKNOWN_TARGET, find_actual_calls
from optpolined.learning.strategy import SiteEpoch
from optpolined.learning.trace.model import Trace, TraceEpoch, TraceHeader

S, A, B, C = (GuestVirtual(16 * n) for n in range(1, 5))
AUDIT = Chain((A, B), counts_hits=True)
CHAIN = Chain((A, B))


def trace(*epochs: tuple[Form, Mapping[int, SiteEpoch]]) -> Trace:
    made = [
        TraceEpoch(
            place,
            0.5,
            {S: by_cpu} if by_cpu else {},
            came={} if place else {S: None},
            forms={S: form},
        )
        for place, (form, by_cpu) in enumerate(epochs)
    ]
    return Trace(TraceHeader("test"), made)


def gain(*, other: int = 0, hits: int = 0, **calls: int) -> dict[int, SiteEpoch]:
    names = {"a": A, "b": B, "c": C}
    return {0: SiteEpoch({names[key]: count for key, count in calls.items()}, other, hits)}


def calls(*epochs: tuple[Form, Mapping[int, SiteEpoch]]) -> list[dict[GuestVirtual, int]]:
    return [dict(actual[S][0]) if actual else {} for actual in find_actual_calls(trace(*epochs))]


def test_who_learns_counts_the_truth_and_what_found_no_slot_went_to_nobody() -> None:
    assert calls((LEARNING, gain(a=5, b=3, other=2)), (LEARNING, {}), (LEARNING, gain(c=1))) == [
        {A: 5, B: 3, UNKNOWN_TARGET: 2},
        {},
        {C: 1},
    ]


def test_hits_are_split_as_the_site_last_learned() -> None:
    assert calls((LEARNING, gain(a=30, b=10)), (AUDIT, gain(hits=100, c=7))) == [
        {A: 30, B: 10},
        {A: 75, B: 25, C: 7},
    ]


def test_hits_of_a_site_that_never_learned_are_split_evenly() -> None:
    assert calls((AUDIT, gain(hits=5))) == [{A: 2, B: 3}]


def test_what_a_chain_hides_goes_on_as_it_was_last_measured() -> None:
    assert calls(
        (LEARNING, gain(a=30, b=10, c=2)),
        (LEARNING, gain(a=50, b=10, c=2)),
        (CHAIN, gain(c=9)),
        (Tree((A, B)), {}),
    )[2:] == [{A: 40, B: 10, C: 9}, {A: 40, B: 10}]


def test_an_audit_measures_too() -> None:
    learned = (LEARNING, gain(a=30, b=10))
    assert calls(learned, (CHAIN, {}), (AUDIT, gain(hits=80)), (CHAIN, {}))[3] == {A: 60, B: 20}


def test_before_the_first_measurement_the_next_one_counts() -> None:
    assert calls((ORIGINAL, {}), (CHAIN, gain(c=1)), (LEARNING, gain(a=4, c=6))) == [
        {A: 4, C: 6},
        {A: 4, C: 1},
        {A: 4, C: 6},
    ]


def test_an_original_site_calls_what_it_called_when_it_learned() -> None:
    assert calls((LEARNING, gain(a=4, other=1)), (ORIGINAL, {})) == [{A: 4, UNKNOWN_TARGET: 1}] * 2


def test_a_census_measures_covered_sites_that_stand_as_they_were_built() -> None:
    was = trace((ORIGINAL, gain(a=6, b=2)), (CHAIN, gain(c=1)), (AUDIT, {}), (ORIGINAL, {}))
    first, second, third, last = was.epochs
    first = replace(first, covered=(S,), census=True)
    third = replace(third, census=True, counts={S: {1: SiteEpoch({}, 0, 40)}})
    with_census = Trace(was.header, [first, second, third, last])
    assert find_actual_calls(with_census) == [
        {S: {0: {A: 6, B: 2}}},
        {S: {0: {A: 6, B: 2, C: 1}}},
        # The hits of CPU 1 are split as the census saw them: it tells no CPUs apart.
        {S: {1: {A: 30, B: 10}}},
        {S: {1: {A: 30, B: 10}}},
    ]
    silent = replace(last, census=True)
    assert find_actual_calls(Trace(was.header, [first, second, third, silent]))[3] == {}


def test_a_site_that_nobody_measured_calls_only_what_it_counted() -> None:
    assert calls((CHAIN, gain(c=3)), (CHAIN, {})) == [{C: 3}, {}]


def test_slow_rates_are_not_rounded_away() -> None:
    looked = [(LEARNING, gain(a=1)), (LEARNING, {}), (LEARNING, {})]
    taken = calls(*looked, *[(ORIGINAL, gain())] * 30)[3:]
    assert sum(counts.get(A, 0) for counts in taken) in (9, 10)


def test_a_site_that_went_calls_nobody_and_a_new_one_starts_anew() -> None:
    was = trace((LEARNING, gain(a=9)), (ORIGINAL, {}), (ORIGINAL, {}), (ORIGINAL, {}))
    first, second, third, last = was.epochs
    gone = TraceEpoch(1, 0.5, {}, went=(S,))
    back = TraceEpoch(2, 0.5, {}, came={S: None}, forms={S: LEARNING})
    assert [second.epoch, third.epoch] == [1, 2]
    assert find_actual_calls(Trace(was.header, [first, gone, back, last])) == [
        {S: {0: {A: 9}}},
        {},
        {},
        {},
    ]
