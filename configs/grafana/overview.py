"""The dashboard of all guests: whether each is managed, what it gains, and what that costs."""

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
    row,
    rows,
    thresholds,
)

__all__ = ("overview",)

_OF = '{guest=~"$guest"}'
_BY_GUEST = "{{guest}}"

_COLUMNS = (
    Column("Managed", f"max by (guest) (optpolined_up{_OF})", "bool_yes_no"),
    Column("Coverage", f"max by (guest) (optpolined_coverage_ratio{_OF})", "percentunit"),
    Column("Direct calls", f"max by (guest) (optpolined_direct_calls_per_second{_OF})", "cps"),
    Column("Misses", f"max by (guest) (guest:optpolined_missed_calls:ratio{_OF})", "percentunit"),
    Column("Cycles saved", f"max by (guest) (optpolined_cycles_saved_per_second{_OF})", "hertz"),
    Column("Sites promoted", 'max by (guest) (optpolined_sites{guest=~"$guest",state="promoted"})'),
    Column("Stops, p99", f"max by (guest) (guest:optpolined_stop_seconds:p99_rate5m{_OF})", "s"),
    Column(
        "Time stopped",
        f"max by (guest) (guest:optpolined_stop_seconds:ratio_rate5m{_OF})",
        "percentunit",
    ),
    Column(
        "Firing alerts",
        'count by (guest) (ALERTS{alertname=~"Optpolined.*",alertstate="firing",guest=~"$guest"})'
        f" or 0 * max by (guest) (optpolined_up{_OF})",
    ),
)


def overview() -> Dashboard:
    """The dashboard of all guests."""
    return dashboard(
        "optpolined-overview",
        "optpolined: all guests",
        "Which guests are managed, what they gain, and what that costs.",
        (_figures(), _guests(), _gain(), _cost()),
        one_guest=False,
    )


def _figures() -> Row:
    return row(
        "",
        figure(
            "Managed guests",
            "Guests that a daemon manages now.",
            f"sum(optpolined_up{_OF})",
        ),
        figure(
            "Not managed",
            "Daemons that are not attached, are paused or on hold, or cannot be scraped.",
            f'count(optpolined_up{_OF} == 0 or up{{job="optpolined",guest=~"$guest"}} == 0)'
            " or vector(0)",
            steps=thresholds({1: RED}),
        ),
        figure(
            "Firing alerts",
            "Of the selected guests.",
            'count(ALERTS{alertname=~"Optpolined.*",alertstate="firing",guest=~"$guest"})'
            " or vector(0)",
            steps=thresholds({1: YELLOW}),
        ),
        figure(
            "Direct calls",
            "Calls a second that take no retpoline; estimated.",
            f"sum(optpolined_direct_calls_per_second{_OF})",
            unit="cps",
        ),
        figure(
            "Cycles saved",
            "CPU cycles a second against retpolines, by the cost model.",
            f"sum(optpolined_cycles_saved_per_second{_OF})",
            unit="hertz",
        ),
        figure(
            "Longest stops",
            "The guest with the highest 99th percentile of the last five minutes.",
            f"max(guest:optpolined_stop_seconds:p99_rate5m{_OF})",
            unit="s",
        ),
    )


def _guests() -> Row:
    return row(
        "",
        rows(
            "Guests",
            "The values of now; click a guest to open its own dashboard.",
            "guest",
            _COLUMNS,
            link=(
                "This guest in depth",
                "/d/optpolined-guest?var-guest=${__value.text}&${datasource:queryparam}",
            ),
        ),
    )


def _gain() -> Row:
    return row(
        "Gain",
        chart(
            "Coverage",
            "The share of the calls at eligible sites that are direct; estimated.",
            Query(f"optpolined_coverage_ratio{_OF}", _BY_GUEST),
            unit="percentunit",
            most=1,
        ),
        chart(
            "Direct calls",
            "Calls a second that take no retpoline; estimated.",
            Query(f"optpolined_direct_calls_per_second{_OF}", _BY_GUEST),
            unit="cps",
            stacked=True,
        ),
    )


def _cost() -> Row:
    return row(
        "Cost",
        chart(
            "Misses",
            "The share of the calls at promoted sites that go to another target.",
            Query(f"guest:optpolined_missed_calls:ratio{_OF}", _BY_GUEST),
            unit="percentunit",
        ),
        chart(
            "Stops",
            "99 of 100 stops of the last five minutes were shorter.",
            Query(f"guest:optpolined_stop_seconds:p99_rate5m{_OF}", _BY_GUEST),
            unit="s",
        ),
        chart(
            "Time stopped",
            "The share of the time for which its daemon stops a guest.",
            Query(f"guest:optpolined_stop_seconds:ratio_rate5m{_OF}", _BY_GUEST),
            unit="percentunit",
        ),
        chart(
            "Load of the daemons",
            "The share of the time for which each loop works; at 1 it falls behind.",
            Query(f"guest:optpolined_epoch_seconds:ratio_rate5m{_OF}", _BY_GUEST),
            unit="percentunit",
        ),
    )
