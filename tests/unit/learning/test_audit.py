from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain
from optpolined.learning.audit import Coverage, audit
from optpolined.learning.strategy import SiteEpoch, Snapshot

from .synthetic import A, B, C, site


def test_calls_are_sorted_by_what_became_of_them() -> None:
    snapshot = Snapshot(
        epoch=1,
        seconds=2.0,
        sites={
            site(0): SiteEpoch({C: 5}, other=5, hits=900),
            site(1): SiteEpoch({A: 60, B: 20}, other=10),
        },
        installed={site(0): Chain((A, B), counts_hits=True), site(1): LEARNING, site(2): LEARNING},
    )
    coverage = audit(snapshot)
    assert coverage == Coverage(direct=900, missed=10, unpromoted=90)
    assert coverage.share == 0.9


def test_nothing_called_is_nothing_covered() -> None:
    assert audit(Snapshot(1, 2.0, {}, {})).share == 0.0


def test_odd_counters_never_make_it_look_better() -> None:
    snapshot = Snapshot(
        epoch=1,
        seconds=2.0,
        sites={
            site(0): SiteEpoch({C: -5}, other=-5, hits=-900),
            site(1): SiteEpoch({C: 7}, hits=7),
            site(2): SiteEpoch({C: 3}, hits=900),
        },
        installed={site(0): Chain((A,), counts_hits=True), site(2): ORIGINAL},
    )
    assert audit(snapshot) == Coverage(direct=0, missed=0, unpromoted=10)
