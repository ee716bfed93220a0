"""Prometheus metrics: made afresh from the status at each scrape."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from optpolined.telemetry.status import Phase, Status

__all__ = ("StatusCollector",)


class StatusCollector(Collector):
    """The metrics of one guest; ``status`` is called at each scrape, from the server's thread.

    ``stop_bounds_seconds`` are the upper bounds of ``Status.stops.buckets``, without infinity.
    """

    def __init__(
        self, status: Callable[[], Status], stop_bounds_seconds: tuple[float, ...]
    ) -> None:
        self._status = status
        self._bounds = stop_bounds_seconds

    def collect(self) -> Iterable[Metric]:
        """Give every metric of the present status."""
        status = self._status()
        yield InfoMetricFamily(
            "optpolined_guest",
            "The guest that is attached to.",
            value={
                "guest": status.guest,
                "kernel": status.kernel,
                "accelerator": status.accelerator,
            },
        )
        yield _gauge("up", "1 while the guest is attached and its sites are managed.", _up(status))
        yield _gauge(
            "stub_released", "1 while a debugger may have the gdbstub.", status.stub_released
        )
        yield _gauge("sites_found", "Sites found in the guest's text.", status.found)
        yield _labelled("sites_skipped", "Sites left alone, by reason.", "reason", status.skipped)
        yield _labelled("sites", "Eligible sites by state.", "state", status.states)
        yield _counter("counted_calls", "Calls that passed a learning stub.", status.counted_calls)
        yield _gauge(
            "direct_calls_per_second", "Direct calls, estimated.", status.direct_per_second
        )
        yield _gauge(
            "missed_calls_per_second", "Misses of promoted sites.", status.missed_per_second
        )
        yield _counter("pokes", "Sites changed.", status.pokes)
        yield _refused(status)
        yield _counter("int3_hits", "Calls that met a breakpoint of ours.", status.int3_hits)
        arena = status.arena
        free = arena.total_bytes - arena.used_bytes - arena.retired_bytes
        states = {"used": arena.used_bytes, "retired": arena.retired_bytes, "free": free}
        yield _labelled("arena_bytes", "The guest's arena, by state.", "state", states)
        yield _gauge("arena_degraded", "1 while the arena is too small.", arena.degraded)
        yield self._stops(status)

    def _stops(self, status: Status) -> Metric:
        total = 0
        buckets: list[tuple[str, float]] = []
        bounds = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        counts = status.stops.buckets or (0,) * len(bounds)
        for bound, count in zip(bounds, counts, strict=True):
            total += count
            buckets.append((bound, total))
        return HistogramMetricFamily(
            "optpolined_stop_seconds",
            "Stops of the guest, host side.",
            buckets=buckets,
            sum_value=status.stops.sum_seconds,
        )


def _up(status: Status) -> int:
    return int(status.phase in (Phase.LEARNING, Phase.RUNNING, Phase.AUDITING))


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"optpolined_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"optpolined_{name}", text, value=value)


def _labelled(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"optpolined_{name}", text, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family


def _refused(status: Status) -> Metric:
    family = CounterMetricFamily(
        "optpolined_refused", "Changes given up because of what stood there.", labels=["reason"]
    )
    for reason, count in sorted(status.refused.items()):
        family.add_metric([reason], count)
    return family
