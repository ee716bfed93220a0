"""One guest in depth: state, calls, sites, changes, stops, arena and the daemon itself."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from configs.grafana.panels import (
    RED,
    YELLOW,
    Column,
    Query,
    Row,
    chart,
    dashboard,
    figure,
    heat,
    row,
    rows,
    thresholds,
    word,
)

__all__ = ("guest",)


def guest() -> Dashboard:
    """The dashboard of one guest."""
    return dashboard(
        "optpolined-guest",
        "optpolined: one guest",
        "What the daemon of one guest does, and what the guest gains.",
        (_state(), _calls(), _sites(), _changes(), _stops(), _arena(), _daemon()),
        one_guest=True,
    )


def _of(metric: str) -> str:
    """The series of the chosen guest."""
    return f'{metric}{{guest="$guest"}}'


def _rate(metric: str) -> str:
    return f"rate({_of(metric)}[$__rate_interval])"


def _quantile(share: float, metric: str) -> str:
    return f"histogram_quantile({share}, {_rate(f'{metric}_bucket')})"


def _state() -> Row:
    info = _of("optpolined_guest_info")
    return row(
        "",
        word(
            "Phase",
            "What the daemon does now.",
            Query(f"{_of('optpolined_phase')} == 1", "{{phase}}"),
        ),
        figure(
            "Coverage",
            "The share of the calls at eligible sites that are direct; estimated.",
            _of("optpolined_coverage_ratio"),
            unit="percentunit",
        ),
        figure(
            "Direct calls",
            "Calls a second that take no retpoline; estimated.",
            _of("optpolined_direct_calls_per_second"),
            unit="cps",
        ),
        figure(
            "Cycles saved",
            "CPU cycles a second against retpolines, by the cost model.",
            _of("optpolined_cycles_saved_per_second"),
            unit="hertz",
        ),
        word(
            "Kernel",
            "The kernel of the guest, and the accelerator.",
            Query(info, "{{kernel}}, {{accelerator}}"),
        ),
        word(
            "Versions",
            "The versions of the daemon, of optpoline.ko's ABI, and of QEMU.",
            Query(info, "{{version}}, ABI {{module_abi}}, QEMU {{qemu}}"),
        ),
        chart(
            "Managed, and held",
            "While it is frozen, or a debugger has the gdbstub, no site is changed.",
            Query(_of("optpolined_up"), "managed"),
            Query(_of("optpolined_frozen"), "frozen"),
            Query(_of("optpolined_stub_released"), "stub released"),
            most=1,
        ),
        chart(
            "Attachments",
            "The daemon attaches again after each reset of the guest.",
            Query(_of("optpolined_attachments_total"), "attachments"),
            Query(_of("optpolined_vcpus"), "vCPUs"),
        ),
    )


def _calls() -> Row:
    return row(
        "Calls",
        chart(
            "Calls at promoted sites",
            "Direct calls are estimated, misses are counted.",
            Query(_of("optpolined_direct_calls_per_second"), "direct"),
            Query(_of("optpolined_missed_calls_per_second"), "missed"),
            unit="cps",
            stacked=True,
        ),
        chart(
            "Shares",
            "Coverage: the share of the calls at eligible sites that are direct. Misses: the share"
            " at promoted sites. Learning: what learning stubs cost beyond retpolines.",
            Query(_of("optpolined_coverage_ratio"), "coverage"),
            Query(_of("guest:optpolined_missed_calls:ratio"), "misses"),
            Query(_of("optpolined_learning_overhead_ratio"), "learning"),
            unit="percentunit",
        ),
        chart(
            "Counted calls",
            "Calls that reach a learning stub; a miss is one of them.",
            Query(_rate("optpolined_counted_calls_total"), "counted"),
            Query(_rate("optpolined_missed_calls_total"), "missed"),
            unit="cps",
        ),
        rows(
            "Hottest sites",
            "As many as metrics.hottest_sites says.",
            "site",
            (
                Column(
                    "Calls", f"max by (site) ({_of('optpolined_site_calls_per_second')})", "cps"
                ),
                Column(
                    "Misses",
                    f"max by (site) ({_of('optpolined_site_misses_per_second')})",
                    "cps",
                ),
            ),
            width=12,
        ),
    )


def _sites() -> Row:
    return row(
        "Sites",
        chart(
            "Sites by state",
            "The states of eligible sites; most are cold.",
            Query(_of("optpolined_sites"), "{{state}}"),
        ),
        chart(
            "Promoted sites by number of targets",
            "How many functions each calls directly.",
            Query(_of("optpolined_sites_promoted"), "{{targets}}"),
            stacked=True,
        ),
        chart(
            "Sites that are left alone",
            "By reason: safety, or the policy.",
            Query(_of("optpolined_sites_skipped"), "{{reason}}"),
            stacked=True,
        ),
        chart(
            "Sites found",
            "The number changes when modules are loaded and unloaded.",
            Query(_of("optpolined_sites_found"), "found"),
            Query(_of("optpolined_sites_eligible"), "eligible"),
        ),
    )


def _changes() -> Row:
    return row(
        "Changes",
        chart(
            "Changes of sites",
            "Per second, by protocol and outcome.",
            Query(_rate("optpolined_pokes_total"), "{{protocol}}, {{outcome}}"),
            unit="cps",
            width=8,
        ),
        chart(
            "Refused changes",
            "Per second, by reason.",
            Query(_rate("optpolined_refused_total"), "{{reason}}"),
            unit="cps",
            width=8,
        ),
        chart(
            "Breakpoint hits",
            "Calls a second that met a site while it changed, and took the retpoline.",
            Query(_rate("optpolined_int3_hits_total"), "int3"),
            unit="cps",
            width=8,
        ),
    )


def _stops() -> Row:
    return row(
        "Stops",
        heat(
            "Duration of stops",
            "As seen from the host, from the request to stop until the request to run.",
            f"sum by (le) ({_rate('optpolined_stop_seconds_bucket')})",
        ),
        chart(
            "Stops",
            "Quantiles beside the budget for the daemon's own work within a stop.",
            Query(_quantile(0.5, "optpolined_stop_seconds"), "p50"),
            Query(_quantile(0.99, "optpolined_stop_seconds"), "p99"),
            Query(_of("optpolined_stop_budget_seconds"), "budget"),
            unit="s",
        ),
        chart(
            "Time stopped",
            "The share of the time for which the daemon stops the guest.",
            Query(_rate("optpolined_stop_seconds_sum"), "stopped"),
            unit="percentunit",
        ),
        chart(
            "Number of stops",
            "Per second.",
            Query(_rate("optpolined_stop_seconds_count"), "stops"),
            unit="cps",
        ),
    )


def _arena() -> Row:
    return row(
        "Arena",
        chart(
            "The arena",
            "Retired blocks are reused after a grace period.",
            Query(_of("optpolined_arena_bytes"), "{{state}}"),
            unit="bytes",
            stacked=True,
            width=8,
        ),
        chart(
            "Sites without space",
            "With more space, denied sites would be promoted and waiting sites would learn.",
            Query(_of("optpolined_arena_denied_sites"), "denied"),
            Query(_of("optpolined_arena_waiting_sites"), "waiting"),
            Query(_of("optpolined_arena_degraded"), "degraded"),
            Query(_of("optpolined_arena_denied_calls_per_second"), "calls a second of the denied"),
            width=8,
        ),
        chart(
            "Grace periods",
            "How long the guest takes for one on average, and how many it took.",
            Query(
                f"{_of('optpolined_grace_period_seconds_sum')}"
                f" / {_of('optpolined_grace_period_seconds_count')}",
                "average",
            ),
            unit="s",
            width=8,
        ),
    )


def _daemon() -> Row:
    return row(
        "The daemon",
        chart(
            "Epochs",
            "The daemon's work in one epoch, without the wait for the next.",
            Query(_quantile(0.5, "optpolined_epoch_seconds"), "p50"),
            Query(_quantile(0.99, "optpolined_epoch_seconds"), "p99"),
            unit="s",
            width=8,
        ),
        chart(
            "Load",
            "The share of the time for which the loop works, and CPU seconds per second.",
            Query(_rate("optpolined_epoch_seconds_sum"), "loop"),
            Query(_rate("process_cpu_seconds_total"), "CPU"),
            unit="percentunit",
            width=8,
        ),
        chart(
            "Memory",
            "The daemon's process.",
            Query(_of("process_resident_memory_bytes"), "resident"),
            unit="bytes",
            width=8,
        ),
        figure(
            "Sites recovered",
            "Sites that this daemon has put back after a daemon that died.",
            _of("optpolined_recoveries_total"),
            steps=thresholds({1: YELLOW}),
        ),
        figure(
            "Rescues",
            "How often the guest was resumed after a dead daemon had left it stopped.",
            _of("optpolined_rescues_total"),
            steps=thresholds({1: YELLOW}),
        ),
        figure(
            "Guardian restarts",
            "How often the daemon found its guardian dead and started another.",
            _of("optpolined_guardian_restarts_total"),
            steps=thresholds({1: YELLOW}),
        ),
        figure(
            "Read errors",
            "Reads of the guest's memory that failed.",
            _of("optpolined_read_errors_total"),
            steps=thresholds({1: YELLOW, 100: RED}),
        ),
        figure(
            "Poke table defects",
            "Entries of the guest's poke table that make no sense and are ignored.",
            _of("optpolined_poke_table_defects"),
            steps=thresholds({1: YELLOW}),
        ),
        figure(
            "Up since",
            "The daemon's process.",
            f"time() - {_of('process_start_time_seconds')}",
            unit="dtdurations",
        ),
        figure(
            "Scrape",
            "How long Prometheus takes to read the metrics.",
            'scrape_duration_seconds{job="optpolined",guest="$guest"}',
            unit="s",
        ),
        figure(
            "Series",
            "The number of series in one scrape.",
            'scrape_samples_scraped{job="optpolined",guest="$guest"}',
        ),
    )
