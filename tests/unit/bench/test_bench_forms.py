"""What the benchmark runs goes where it should, and its arithmetic is right."""

from collections.abc import Callable, Iterator
from itertools import count, pairwise

import pytest

from guest.image import build
from optpolined.addresses import GuestVirtual
from optpolined.calibrate.forms import DIRECT, DISPATCH, FORMS, INLINE, Kit, Maker, Site, SiteCode
from optpolined.calibrate.measure import Case, Ratio, measure, ratios
from optpolined.calibrate.native import Code
from optpolined.calibrate.programs import Layout, Order, Program, Setting
from optpolined.calibrate.stub import LEARN_STUB, LearnStub
from tests.bench.cases import CLAIMS, Claim, Results, cases
from tests.bench.report import document, table, text
from tests.bench.stub import learn_stub

LAYOUTS = tuple(Layout)


@pytest.fixture(scope="module")
def stub() -> LearnStub:
    return learn_stub(build.load("cloud").modules["optpoline"].read_bytes())


def test_the_stub_of_a_host_without_the_module_is_the_module_s(stub: LearnStub) -> None:
    assert stub == LEARN_STUB


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("form", "maker"), FORMS.items(), ids=FORMS)
def test_every_form_reaches_its_one_target(
    form: str, maker: Maker, layout: Layout, stub: LearnStub
) -> None:
    for placement, sites in enumerate((1, 2, 7)):
        with Program(maker, Setting(sites, layout=layout), placement, stub) as program:
            assert program.cycles_per_call(2) > 0, form
            assert program.cycles_per_call_evicted() > 0, form


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("maker", DISPATCH.values(), ids=DISPATCH)
def test_every_form_reaches_its_several_targets(
    maker: Maker, order: Order, stub: LearnStub
) -> None:
    for targets in (2, 16):
        with Program(maker, Setting(3, targets, order), 0, stub) as program:
            assert program.cycles_per_call() > 0


def broken(maker: Maker, choose: Callable[[Site], GuestVirtual]) -> Maker:
    """A form that was made for another target."""

    def make(kit: Kit, site: Site) -> SiteCode:
        return maker(kit, Site((choose(site),), site.other))

    return make


def test_a_call_that_goes_elsewhere_is_noticed(stub: LearnStub) -> None:
    wrong = broken(FORMS[DIRECT], lambda site: site.other)
    with (
        Program(wrong, Setting(3), 0, stub) as program,
        pytest.raises(AssertionError, match="went elsewhere"),
    ):
        program.cycles_per_call()


def test_sites_that_call_each_others_targets_are_noticed(stub: LearnStub) -> None:
    firsts: list[GuestVirtual] = []

    def of_another_site(site: Site) -> GuestVirtual:
        firsts.append(site.first)
        return firsts[0]

    wrong = broken(FORMS[DIRECT], of_another_site)
    with (
        Program(wrong, Setting(2), 0, stub) as program,
        pytest.raises(AssertionError, match="went elsewhere"),
    ):
        program.cycles_per_call()


def test_one_missing_call_is_noticed(stub: LearnStub) -> None:
    numbers = count()

    def make(kit: Kit, site: Site) -> SiteCode:
        return FORMS[DIRECT](kit, site) if next(numbers) else lambda _at: b"\x90" * 5

    with (
        Program(make, Setting(3), 0, stub) as program,
        pytest.raises(AssertionError, match="calls arrived instead of"),
    ):
        program.cycles_per_call()


def site_starts(memory: Code) -> Iterator[int]:
    """Where the loads of each site stand."""
    start, size = memory.used
    code = memory.read(start, size)
    at = code.find(b"\x8b\x87")
    while at >= 0:
        if code[at + 6 : at + 8] == b"\x8b\x8f":
            yield start + at
        at = code.find(b"\x8b\x87", at + 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("form", "maker"), FORMS.items(), ids=FORMS)
def test_sites_of_every_form_stand_at_all_offsets_in_a_cache_line(
    form: str, maker: Maker, layout: Layout, stub: LearnStub
) -> None:
    with Program(maker, Setting(64, layout=layout), 0, stub) as program:
        starts = list(site_starts(program._memory))
    assert len(starts) == 64, form
    assert {start % 64 for start in starts} == set(range(0, 64, 8)), form
    distances = {after - before for before, after in pairwise(starts)}
    assert len(distances) == 1, form
    assert layout is Layout.PACKED or distances == {72}, form


def test_a_placement_gives_every_form_the_same_start(stub: LearnStub) -> None:
    for placement in range(3):
        starts = set()
        for maker in FORMS.values():
            with Program(maker, Setting(2), placement, stub) as program:
                starts.add(next(site_starts(program._memory)) % 4096)
        assert len(starts) == 1


def test_ratios_are_taken_within_a_round() -> None:
    """A round in which all was slow does not shift them."""
    samples = [{"base": 2.0, "form": 3.0}, {"base": 20.0, "form": 30.0}, {"base": 2.0, "form": 4.0}]
    found = ratios(samples, "base")
    assert found["base"] == Ratio(1.0, 1.0, 1.0, 2.0)
    form = found["form"]
    assert (form.median, form.low, form.cycles) == (1.5, 1.5, 4.0)
    assert form.high == pytest.approx(1.9)


def test_a_case_is_measured_in_all_its_placements(stub: LearnStub) -> None:
    forms = {name: FORMS[name] for name in (DIRECT, INLINE)}
    said: list[str] = []
    case = Case("few", Setting(2), forms, DIRECT, placements=2, rounds=2)
    found = measure(case, stub, said.append)
    assert said == ["few, placement 1 of 2", "few, placement 2 of 2"]
    assert list(found) == list(forms)
    assert found[DIRECT].median == 1.0
    assert 0 < found[INLINE].low <= found[INLINE].median <= found[INLINE].high


def invented(ratio: float) -> Results:
    """Every form of every case at ``ratio``."""
    return {case.name: dict.fromkeys(case.forms, Ratio(ratio, 0.5, 9.25, 7.0)) for case in cases()}


def test_a_table_has_a_row_for_each_form_and_a_column_for_each_case() -> None:
    columns = {
        "1": {"some": Ratio(1.0, 0.996, 1.25, 4.0), "another": Ratio(2.346, 2.0, 3.0, 9.0)},
        "1000": {"some": Ratio(1.0, 1.0, 1.0, 4.0), "another": Ratio(12.0, 11.0, 13.0, 50.0)},
    }
    head, some, another = (line.split() for line in table(columns))
    assert head == ["1", "1000"]
    assert some == ["some", "1.00", "[1.00", "1.25]", "1.00", "[1.00", "1.00]"]
    assert another == ["another", "2.35", "[2.00", "3.00]", "12.00", "[11.00", "13.00]"]


@pytest.mark.parametrize(("ratio", "verdicts"), [(1.05, 6), (1.06, 2), (1.35, 2), (1.36, 0)])
def test_claims_are_judged_by_what_was_measured(ratio: float, verdicts: int) -> None:
    results = invented(ratio)
    assert sum(claim.confirmed(results) for claim in CLAIMS) == verdicts
    report = text({"cpu": "some CPU"}, results)
    assert report.count(", confirmed") == verdicts
    assert report.count("NOT confirmed here") == len(CLAIMS) - verdicts
    claims = document({"cpu": "some CPU"}, results)["claims"]
    assert [claim["confirmed"] for claim in claims] == [
        claim.confirmed(results) for claim in CLAIMS
    ]


def test_a_claim_says_what_was_claimed_and_seen() -> None:
    results = {"spread 8000": {INLINE: Ratio(1.2, 1.1, 1.3, 30.0)}}
    assert Claim(INLINE, "spread 8000", 1.05).line(results) == (
        f"{INLINE}, spread 8000 sites, at most 1.05 x direct: 1.200, NOT confirmed here"
    )


def test_memory_that_is_full_says_so() -> None:
    memory = Code(4096)
    try:
        with pytest.raises(MemoryError, match="do not fit"):
            memory.reserve(4097)
    finally:
        memory.close()
