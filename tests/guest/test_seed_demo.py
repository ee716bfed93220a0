"""Rows of `make demo-seed`: they hold on a real guest, and broken forms make theirs false."""

from collections.abc import Iterator

import pytest

from guest.image.boot import Guest
from guest.seed_demo import forms
from guest.seed_demo.bench import Bench, attached, settings
from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Form
from optpolined.patching import patcher
from optpolined.patching.inline_sites import Head
from optpolined.session.counting import SiteCounters

_WORKLOAD = (
    "for name in call_1 call_2_skewed tail_1 tail_2_skewed keyed_random keyed_tail keyed_lies "
    "keyed_pointer; do echo run $name >/proc/optseed; done; wait"
)


@pytest.fixture(scope="module")
def seeded() -> Iterator[Guest]:
    with Guest(append=f'seed workload="{_WORKLOAD}"') as guest:
        guest.wait_ready()
        yield guest


@pytest.fixture
def bench(seeded: Guest) -> Iterator[Bench]:
    with attached(seeded, settings(seeded)) as bench:
        yield bench


def test_rows_hold(bench: Bench) -> None:
    for row in (forms.inline(bench), forms.keyed_tree(bench)):
        assert row.works, row.evidence


def test_sites_that_get_no_head_make_the_inline_row_false(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def headless(form: Form) -> tuple[Head, Form]:
        return Head(None), form

    monkeypatch.setattr(patcher, "split", headless)
    row = forms.inline(bench)
    assert not row.works, row.evidence


def test_keys_that_teach_nothing_make_the_keyed_row_false(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_counters: SiteCounters, _site: GuestVirtual) -> dict[int, GuestVirtual]:
        return {}

    monkeypatch.setattr(SiteCounters, "key_targets", nothing)
    row = forms.keyed_tree(bench)
    assert not row.works, row.evidence
