"""A scrape tells no more of many sites than of few; `make bench-scrape` has the milliseconds."""

import pytest

from tests.bench.scrape import CLAIM_MILLISECONDS, scrape, told

HOTTEST = 20


def test_the_number_of_series_is_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    few, many, most = (scrape(sites, hottest=HOTTEST, runs=10) for sites in (800, 8_000, 80_000))
    with capsys.disabled():
        print(f"\nscrape: {told(many)} (claimed: under {CLAIM_MILLISECONDS} ms)")  # noqa: T201
    assert few.series <= many.series == most.series
    hot_series = 2  # calls and misses
    none = scrape(8_000, hottest=0, runs=1)
    assert many.series == none.series + hot_series * HOTTEST
