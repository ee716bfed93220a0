"""The metrics of a status, as Prometheus reads them."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from optpolined.telemetry.metrics import StatusCollector
from optpolined.telemetry.status import ArenaUse, Phase, Status, StopSummary

BOUNDS = (1e-4, 1e-3)
STATUS = Status(
    guest="vm1",
    phase=Phase.RUNNING,
    kernel="6.1.0",
    accelerator="kvm",
    found=7000,
    skipped={"noinstr": 8},
    states={"promoted": 61, "cold": 6931},
    counted_calls=10,
    pokes=200,
    refused={"foreign_breakpoint": 1},
    int3_hits=3,
    arena=ArenaUse(total_bytes=4096, used_bytes=3584, retired_bytes=96, degraded=True),
    stops=StopSummary(count=6, sum_seconds=0.0061, buckets=(1, 3, 2)),
)


def samples(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_figure_of_the_status_is_there() -> None:
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: STATUS, BOUNDS))
    found = samples(generate_latest(registry).decode())
    assert found["optpolined_up", ""] == 1
    assert found["optpolined_stub_released", ""] == 0
    assert found["optpolined_guest_info", "accelerator=kvm,guest=vm1,kernel=6.1.0"] == 1
    assert found["optpolined_sites", "state=promoted"] == 61
    assert found["optpolined_sites_skipped", "reason=noinstr"] == 8
    assert found["optpolined_pokes_total", ""] == 200
    assert found["optpolined_refused_total", "reason=foreign_breakpoint"] == 1
    assert found["optpolined_int3_hits_total", ""] == 3
    assert found["optpolined_arena_bytes", "state=used"] == 3584
    assert found["optpolined_arena_bytes", "state=retired"] == 96
    assert found["optpolined_arena_bytes", "state=free"] == 416
    assert found["optpolined_arena_degraded", ""] == 1
    assert found["optpolined_stop_seconds_bucket", "le=0.0001"] == 1
    assert found["optpolined_stop_seconds_bucket", "le=0.001"] == 4
    assert found["optpolined_stop_seconds_bucket", "le=+Inf"] == 6
    assert found["optpolined_stop_seconds_count", ""] == 6
    assert found["optpolined_stop_seconds_sum", ""] == pytest.approx(0.0061)


def test_a_paused_guest_is_not_up() -> None:
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: Status("vm1", Phase.PAUSED), BOUNDS))
    assert samples(generate_latest(registry).decode())["optpolined_up", ""] == 0


def test_a_released_stub_is_told_and_the_guest_is_not_up() -> None:
    registry = CollectorRegistry()
    released = Status("vm1", Phase.RELEASED, stub_released=True)
    registry.register(StatusCollector(lambda: released, BOUNDS))
    found = samples(generate_latest(registry).decode())
    assert (found["optpolined_stub_released", ""], found["optpolined_up", ""]) == (1, 0)
