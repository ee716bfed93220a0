"""The metrics of a status, as Prometheus reads them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from optpolined.api.refusal import Refusal
from optpolined.api.status import (
    EPOCH_BUCKETS_SECONDS,
    ArenaUse,
    DaemonPhase,
    Durations,
    HotSite,
    Status,
    StopSummary,
    Versions,
)
from optpolined.telemetry.metrics import StatusCollector

STATUS = Status(
    guest="vm1",
    phase=DaemonPhase.RUNNING,
    versions=Versions("0.1.0", 3, "7.2.22"),
    kernel="6.1.0",
    accelerator="kvm",
    vcpus=2,
    attachments=2,
    epochs=Durations(2, 0.5, (0,) * len(EPOCH_BUCKETS_SECONDS) + (2,)),
    found=7000,
    eligible=6992,
    skipped={"noinstr": 8},
    states={"promoted": 61, "cold": 6931},
    targets_histogram={1: 60, 4: 1},
    hottest=(HotSite("vfs_read+0x9e", ("ext4_file_read_iter",), 5000, 20),),
    counted_calls=10,
    missed_calls=4,
    direct_per_second=5000,
    missed_per_second=20,
    coverage=0.98,
    learning_overhead_share=0.01,
    cycles_saved_per_second=160_000,
    protocol="breakpoint",
    pokes=200,
    refused={"foreign_breakpoint": 1, "split_page": 2},
    int3_hits=3,
    poke_table_defects=2,
    arena=ArenaUse(
        total_bytes=4096,
        used_bytes=3584,
        retired_bytes=96,
        degraded=True,
        denied=5,
        denied_per_second=7.5,
        waiting=6,
    ),
    stops=StopSummary(6, 0.0061, (1, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 2)),
    stop_budget_seconds=0.001,
    recoveries=9,
    rescues=1,
    guardian_restarts=12,
    read_errors=11,
)

SERIES_AT_MOST = 700
"""Of a scrape, however many sites there are: 400 of them are the 200 hottest sites'."""


def page(status: Status) -> str:
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: status))
    return generate_latest(registry).decode()


def samples(status: Status) -> dict[str, float]:
    """Each series as Prometheus writes it, without the label that all have."""
    found = {}
    for family in text_string_to_metric_families(page(status)):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("guest") == status.guest
            inner = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
            series = f"{sample.name}{{{inner}}}" if inner else sample.name
            assert series not in found
            found[series] = sample.value
    return found


EXPECTED = {
    "optpolined_up": 1,
    "optpolined_guest_info{"
    'accelerator="kvm",kernel="6.1.0",module_abi="3",qemu="7.2.22",version="0.1.0"}': 1,
    'optpolined_phase{phase="running"}': 1,
    'optpolined_phase{phase="released"}': 0,
    "optpolined_frozen": 0,
    "optpolined_stub_released": 0,
    "optpolined_vcpus": 2,
    "optpolined_attachments_total": 2,
    "optpolined_sites_found": 7000,
    "optpolined_sites_eligible": 6992,
    'optpolined_sites_skipped{reason="noinstr"}': 8,
    'optpolined_sites{state="promoted"}': 61,
    'optpolined_sites_promoted{targets="4"}': 1,
    'optpolined_site_calls_per_second{site="vfs_read+0x9e"}': 5000,
    'optpolined_site_misses_per_second{site="vfs_read+0x9e"}': 20,
    "optpolined_counted_calls_total": 10,
    "optpolined_missed_calls_total": 4,
    "optpolined_direct_calls_per_second": 5000,
    "optpolined_missed_calls_per_second": 20,
    "optpolined_coverage_ratio": 0.98,
    "optpolined_learning_overhead_ratio": 0.01,
    "optpolined_cycles_saved_per_second": 160_000,
    'optpolined_pokes_total{outcome="done",protocol="breakpoint"}': 200,
    'optpolined_pokes_total{outcome="refused",protocol="breakpoint"}': 3,
    'optpolined_refused_total{reason="foreign_breakpoint"}': 1,
    'optpolined_refused_total{reason="foreign_bytes"}': 0,
    "optpolined_int3_hits_total": 3,
    "optpolined_poke_table_defects": 2,
    'optpolined_stop_seconds_bucket{le="5e-05"}': 1,
    'optpolined_stop_seconds_bucket{le="0.001"}': 4,
    'optpolined_stop_seconds_bucket{le="0.05"}': 4,
    'optpolined_stop_seconds_bucket{le="+Inf"}': 6,
    "optpolined_stop_seconds_count": 6,
    "optpolined_stop_seconds_sum": 0.0061,
    "optpolined_stop_budget_seconds": 0.001,
    "optpolined_epoch_seconds_count": 2,
    'optpolined_epoch_seconds_bucket{le="10"}': 0,
    "optpolined_grace_period_seconds_count": 0,
    'optpolined_arena_bytes{state="used"}': 3584,
    'optpolined_arena_bytes{state="retired"}': 96,
    'optpolined_arena_bytes{state="free"}': 416,
    "optpolined_arena_degraded": 1,
    "optpolined_arena_denied_sites": 5,
    "optpolined_arena_denied_calls_per_second": 7.5,
    "optpolined_arena_waiting_sites": 6,
    "optpolined_recoveries_total": 9,
    "optpolined_rescues_total": 1,
    "optpolined_guardian_restarts_total": 12,
    "optpolined_read_errors_total": 11,
}


def test_every_figure_of_the_status_is_there() -> None:
    found = samples(STATUS)
    assert {series: found[series] for series in EXPECTED} == pytest.approx(EXPECTED)


def test_the_process_is_measured_too() -> None:
    found = samples(STATUS)
    assert 0 < found["process_start_time_seconds"] <= time.time()
    assert found["process_resident_memory_bytes"] > 0


def test_what_is_not_known_is_absent() -> None:
    assert "optpolined_coverage_ratio" not in samples(Status("vm1"))


@pytest.mark.parametrize("phase", DaemonPhase)
def test_one_phase_is_on_and_only_a_managed_guest_is_up(phase: DaemonPhase) -> None:
    found = samples(Status("vm1", phase))
    on = [
        series for series, value in found.items() if series.startswith("optpolined_phase") and value
    ]
    assert on == [f'optpolined_phase{{phase="{phase.name.lower()}"}}']
    assert found["optpolined_up"] == (
        phase in (DaemonPhase.LEARNING, DaemonPhase.RUNNING, DaemonPhase.AUDITING)
    )


def test_a_series_that_alerts_look_at_begins_at_zero() -> None:
    found = samples(Status("vm1"))
    assert found['optpolined_refused_total{reason="foreign_bytes"}'] == 0
    assert found["optpolined_recoveries_total"] == 0


def test_every_reason_that_is_counted_is_announced_and_no_other() -> None:
    label = 'optpolined_refused_total{reason="'
    announced = {
        series.removeprefix(label).removesuffix('"}')
        for series in samples(Status("vm1"))
        if series.startswith(label)
    }
    assert announced == {reason for reason in Refusal if reason.is_counted}
    assert {"unmapped", "table_changed"} <= announced
    assert "held_up" not in announced


TEXT = st.text(st.characters(exclude_categories=()), max_size=300)


@given(st.lists(TEXT, max_size=5), TEXT)
def test_no_text_of_the_guest_breaks_the_page(sites: list[str], kernel: str) -> None:
    """Surrogates, control characters, quotes, of any length: the page stays one, and short."""
    hottest = tuple(HotSite(site, (), 1, 0) for site in sites)
    found = samples(Status("vm1", kernel=kernel, hottest=hottest))
    calls = {series: value for series, value in found.items() if "site_calls_per_second" in series}
    assert sum(calls.values()) == len(sites)
    assert all(len(series) < 400 for series in calls)
    assert sum(series.startswith("optpolined_guest_info") for series in found) == 1


def test_names_that_become_the_same_are_one_series() -> None:
    long = "x" * 300
    hottest = (HotSite(long + "1", (), 3, 1), HotSite(long + "2", (), 4, 2))
    found = samples(Status("vm1", hottest=hottest))
    assert found[f'optpolined_site_calls_per_second{{site="{"x" * 128}"}}'] == 7


def test_the_number_of_series_is_bounded() -> None:
    """unit/bench has what a scrape of so many sites costs."""
    hottest = tuple(HotSite(f"function_{n}+0x{n:x}", (), n, 1) for n in range(200))
    states = {f"state_{n}": 1000 for n in range(8)}
    status = Status("vm1", found=8000, eligible=7950, states=states, hottest=hottest)
    series = sum(not line.startswith("#") for line in page(status).splitlines())
    assert 400 < series <= SERIES_AT_MOST
