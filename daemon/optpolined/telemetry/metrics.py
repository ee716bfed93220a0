"""Prometheus metrics, made from the status at each scrape.

Each series has the label ``guest``.  It is bounded and never changes, because each guest has a
daemon of its own.  A count that alerts use starts at 0, because Prometheus sees no growth in a
series that begins with its first event.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from optpolined.api.refusal import Refusal
from optpolined.api.status import (
    EPOCH_BUCKETS_SECONDS,
    GRACE_BUCKETS_SECONDS,
    STOP_BUCKETS_SECONDS,
    DaemonPhase,
    Durations,
    Status,
)

__all__ = ("StatusCollector",)

_MANAGED = frozenset({DaemonPhase.LEARNING, DaemonPhase.RUNNING, DaemonPhase.AUDITING})

_LABEL_CHARACTERS = 128


class StatusCollector(Collector):
    """The metrics of one guest, and of the process that serves it.

    ``status`` is called at each scrape, from a thread of the server.
    """

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status
        self._process = ProcessCollector(registry=None)

    def collect(self) -> Iterable[Metric]:
        """Return every metric of the status of now."""
        status = self._status()
        guest = _label_value(status.guest)
        for family in (*_families(status), *self._process.collect()):
            for sample in family.samples:
                sample.labels["guest"] = guest
            yield family


def _families(status: Status) -> Iterator[Metric]:
    yield from _of_guest(status)
    yield from _of_sites(status)
    yield from _of_calls(status)
    yield from _of_changes(status)
    yield from _of_arena(status)
    yield from _of_loop(status)


def _of_guest(status: Status) -> Iterator[Metric]:
    info = {
        "kernel": status.kernel,
        "accelerator": status.accelerator,
        "version": status.versions.optpolined,
        "module_abi": str(status.versions.module_abi),
        "qemu": status.versions.qemu,
    }
    yield InfoMetricFamily(
        "optpolined_guest",
        "The guest, and the versions of what manages it.",
        value={label: _label_value(value) for label, value in info.items()},
    )
    yield _gauge(
        "up", "1 while the guest is attached and its sites are managed.", status.phase in _MANAGED
    )
    yield _gauges(
        "phase",
        "1 for the phase that the daemon is in, 0 for all others.",
        "phase",
        {phase.name.lower(): phase is status.phase for phase in DaemonPhase},
    )
    yield _gauge(
        "frozen", "1 while the operator has frozen the guest: no site is changed.", status.frozen
    )
    yield _gauge("stub_released", "1 while a debugger may have the gdbstub.", status.stub_released)
    yield _gauge("vcpus", "CPUs of the guest.", status.vcpus)
    yield _counter("attachments", "How often the guest was attached to.", status.attachments)


def _of_sites(status: Status) -> Iterator[Metric]:
    yield _gauge("sites_found", "Sites found in the guest's text.", status.found)
    yield _gauge("sites_eligible", "Of these, those that may be changed.", status.eligible)
    yield _gauges("sites_skipped", "Sites left alone, by reason.", "reason", status.skipped)
    yield _gauges("sites", "Eligible sites by state.", "state", status.states)
    yield _gauges(
        "sites_promoted",
        "Sites whose calls are direct now, by number of targets.",
        "targets",
        {str(targets): count for targets, count in status.targets_histogram.items()},
    )
    yield _gauges(
        "site_calls_per_second",
        "Calls of the hottest promoted sites.",
        "site",
        ((hot.site, hot.calls_per_second) for hot in status.hottest),
    )
    yield _gauges(
        "site_misses_per_second",
        "Misses of the hottest promoted sites.",
        "site",
        ((hot.site, hot.misses_per_second) for hot in status.hottest),
    )


def _of_calls(status: Status) -> Iterator[Metric]:
    yield _counter(
        "counted_calls",
        "Calls that reached a learning stub: of sites that learn, and misses.",
        status.counted_calls,
    )
    yield _counter("missed_calls", "Of these, misses of promoted sites.", status.missed_calls)
    yield _gauge("direct_calls_per_second", "Direct calls, estimated.", status.direct_per_second)
    yield _gauge(
        "missed_calls_per_second",
        "Misses of promoted sites in the last epoch.",
        status.missed_per_second,
    )
    yield _gauge(
        "coverage_ratio",
        "The share of the calls at eligible sites that are direct, estimated; absent where no call"
        " was counted yet.",
        status.coverage,
    )
    yield _gauge(
        "learning_overhead_ratio",
        "What learning stubs cost beyond retpolines, as a share of what all calls would cost by"
        " retpolines; estimated.",
        status.learning_overhead_share,
    )
    yield _gauge(
        "cycles_saved_per_second",
        "CPU cycles saved against retpolines, estimated.",
        status.cycles_saved_per_second,
    )


def _of_changes(status: Status) -> Iterator[Metric]:
    refused = {str(reason): 0 for reason in Refusal if reason.is_counted} | dict(status.refused)
    pokes = CounterMetricFamily(
        "optpolined_pokes",
        "Changes of sites by how they were made and how they ended: done or refused.",
        labels=("protocol", "outcome"),
    )
    protocol = _label_value(status.protocol)
    pokes.add_metric((protocol, "done"), status.pokes)
    pokes.add_metric((protocol, "refused"), sum(refused.values()))
    yield pokes
    yield _counters("refused", "Changes that were given up, by reason.", "reason", refused)
    yield _counter("int3_hits", "Calls that met a breakpoint of the daemon.", status.int3_hits)
    yield _gauge(
        "poke_table_defects",
        "Entries of the guest's poke table that make no sense and are ignored.",
        status.poke_table_defects,
    )
    yield _histogram(
        "stop_seconds", "Stops of the guest, host side.", STOP_BUCKETS_SECONDS, status.stops
    )
    yield _gauge(
        "stop_budget_seconds",
        "What the daemon's own work in one stop may take, as configured.",
        status.stop_budget_seconds,
    )
    yield _histogram(
        "grace_period_seconds",
        "Grace periods that the guest was asked for.",
        GRACE_BUCKETS_SECONDS,
        status.graces,
    )


def _of_arena(status: Status) -> Iterator[Metric]:
    arena = status.arena
    states = {
        "used": arena.used_bytes,
        "retired": arena.retired_bytes,
        "free": arena.total_bytes - arena.used_bytes - arena.retired_bytes,
    }
    yield _gauges("arena_bytes", "The guest's arena, by state.", "state", states)
    yield _gauge("arena_degraded", "1 while the arena is too small.", arena.degraded)
    yield _gauge("arena_denied_sites", "Sites to promote that get no space.", arena.denied)
    yield _gauge(
        "arena_denied_calls_per_second",
        "Calls of the denied sites, as last measured.",
        arena.denied_per_second,
    )
    yield _gauge("arena_waiting_sites", "Sites to learn that get no space.", arena.waiting)


def _of_loop(status: Status) -> Iterator[Metric]:
    yield _histogram(
        "epoch_seconds",
        "The daemon's work in each epoch, without the wait for the next.",
        EPOCH_BUCKETS_SECONDS,
        status.epochs,
    )
    yield _counter(
        "recoveries",
        "Sites put back after a daemon died, or lost its guest.",
        status.recoveries,
    )
    yield _counter(
        "rescues",
        "How often the guest was resumed after a dead daemon had left it stopped.",
        status.rescues,
    )
    yield _counter(
        "guardian_restarts",
        "How often another guardian was started because the last one had died.",
        status.guardian_restarts,
    )
    yield _counter("read_errors", "Reads of the guest's memory that failed.", status.read_errors)


def _gauge(name: str, text: str, value: float | None) -> Metric:
    return GaugeMetricFamily(f"optpolined_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"optpolined_{name}", text, value=value)


_Values = Mapping[str, float] | Iterable[tuple[str, float]]


def _gauges(name: str, text: str, label: str, values: _Values) -> Metric:
    return _add(GaugeMetricFamily(f"optpolined_{name}", text, labels=(label,)), values)


def _counters(name: str, text: str, label: str, values: _Values) -> Metric:
    return _add(CounterMetricFamily(f"optpolined_{name}", text, labels=(label,)), values)


def _add(family: GaugeMetricFamily | CounterMetricFamily, values: _Values) -> Metric:
    """Add a sample for each value of the label; those that become the same are summed."""
    sums: defaultdict[str, float] = defaultdict(float)
    for text, value in values.items() if isinstance(values, Mapping) else values:
        sums[_label_value(text)] += value
    for text, value in sorted(sums.items()):
        family.add_metric((text,), value)
    return family


def _label_value(text: str) -> str:
    """Return text from the guest, short and printable: Prometheus takes only UTF-8."""
    return "".join(
        character if character.isprintable() else "?" for character in text[:_LABEL_CHARACTERS]
    )


def _histogram(
    name: str, text: str, bounds_seconds: tuple[float, ...], durations: Durations
) -> Metric:
    bounds = [*(f"{bound:g}" for bound in bounds_seconds), "+Inf"]
    counts = durations.buckets or (0,) * len(bounds)
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip(bounds, counts, strict=True):
        total += count
        buckets.append((bound, total))
    return HistogramMetricFamily(
        f"optpolined_{name}", text, buckets=buckets, sum_value=durations.sum_seconds
    )
