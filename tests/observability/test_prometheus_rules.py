"""Rules, alerts and dashboards by themselves, without a guest."""

import json
import re
from pathlib import Path

import pytest
import yaml

from configs.grafana.generate import DIRECTORY, generate
from optpolined.api.status import Status
from optpolined.telemetry.metrics import StatusCollector
from tests.observability.dashboards import asked, dashboards
from tests.observability.lens import (
    CONFIGS,
    RULE_FILES,
    expressions,
    groups,
    seen_through,
    without_thresholds,
)
from tests.observability.prometheus import Tools

UNIT_TESTS = sorted(Path("tests/prometheus").glob("*.yml"))
README = CONFIGS / "README.md"
SEVERITIES = ("critical", "warning", "info")
ALERTS = [rule for rule in groups(CONFIGS / "optpolined.alerts.yml") if "alert" in rule]
METRIC = re.compile(r"\b(?:guest:)?(?:optpolined|process)_[a-z0-9_]+(?::[a-z0-9_]+)?")
PARTS = ("_bucket", "_count", "_sum", "_total", "_info")


def test_promtool_accepts_the_rules_and_they_do_what_their_tests_say(tools: Tools) -> None:
    said = tools.check("check", "rules", *RULE_FILES)
    assert said.count("SUCCESS") == len(RULE_FILES)
    said = tools.check("test", "rules", *UNIT_TESTS)
    assert said.count("SUCCESS") == len(UNIT_TESTS)


def test_promtool_accepts_the_example_of_a_configuration(tools: Tools, tmp_path: Path) -> None:
    """Put the rules where the example expects them."""
    text = (CONFIGS / "scrape.yml").read_text("utf-8")
    for rules in RULE_FILES:
        assert f"/etc/prometheus/{rules.name}" in text
        (tmp_path / rules.name).write_text(rules.read_text("utf-8"), encoding="utf-8")
    config = tmp_path / "prometheus.yml"
    config.write_text(text.replace("/etc/prometheus", str(tmp_path)), encoding="utf-8")
    assert "2 rule files found" in tools.check("check", "config", config)


def test_the_rules_that_guests_are_tested_with_are_rules(tools: Tools, tmp_path: Path) -> None:
    copies = [seen_through(rules, tmp_path) for rules in RULE_FILES]
    tools.check("check", "rules", *copies)
    before = {rule["alert"]: rule for rule in ALERTS}
    for rule in groups(copies[1]):
        assert rule["labels"] == before[rule["alert"]]["labels"]
    assert expressions(copies[0])["guest:optpolined_stop_seconds:ratio_rate5m"] == (
        "rate(optpolined_stop_seconds_sum[20000ms])"
    )


def test_what_an_alert_looks_at_keeps_its_selectors() -> None:
    assert without_thresholds('a{b="1",c!="2"} == 0 unless ignoring (d) e{f=~"g"} >= 1') == [
        'a{b="1",c!="2"} == bool 0 ',
        ' e{f=~"g"} >= bool 1',
    ]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    name = str(rule["alert"])
    assert re.fullmatch(r"Optpolined([A-Z][a-z]+)+", name)
    assert rule["labels"]["severity"] in SEVERITIES
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"{README}#{name.lower()}"
    headings = [line for line in README.read_text("utf-8").splitlines() if line.startswith("#")]
    assert f"### {name}" in headings


def test_every_alert_has_a_unit_test_that_fires_it_and_one_that_does_not() -> None:
    document = yaml.safe_load(Path("tests/prometheus/alerts.yml").read_text("utf-8"))
    tests = [test for part in document["tests"] for test in part["alert_rule_test"]]
    for rule in ALERTS:
        of_it = [test["exp_alerts"] for test in tests if test["alertname"] == rule["alert"]]
        assert any(of_it), rule["alert"]
        assert not all(of_it), rule["alert"]


def test_every_alert_is_made_to_fire_on_a_guest() -> None:
    here = Path(__file__)
    tests = (here.with_name("test_prometheus_live.py"), here.with_name("all_alerts.py"))
    caused = "".join(path.read_text("utf-8") for path in tests)
    for rule in ALERTS:
        assert f'"{rule["alert"]}"' in caused, rule["alert"]


def test_the_dashboards_are_those_that_the_code_makes() -> None:
    written = {path.name: path.read_text("utf-8") for path in DIRECTORY.iterdir()}
    assert written == generate(), "run `make dashboards`"


def test_a_dashboard_takes_its_datasource_and_guest_from_variables() -> None:
    for path in dashboards():
        page = json.loads(path.read_text("utf-8"))
        assert [variable["name"] for variable in page["templating"]["list"]] == [
            "datasource",
            "guest",
        ]
        panels = [panel for panel in page["panels"] if panel["type"] != "row"]
        assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
        assert all(panel["description"] for panel in panels)
        assert len({panel["id"] for panel in page["panels"]}) == len(page["panels"])


def test_every_metric_is_shown_and_no_other() -> None:
    told = {family.name for family in StatusCollector(lambda: Status("vm1")).collect()}
    known = told | set(expressions(RULE_FILES[0]))
    ours = {name for name in known if "optpolined" in name}
    shown = {expr for path in dashboards() for _, expr in asked(path, "vm1")}
    assert ours <= _families(shown) <= known
    for expr in expressions(RULE_FILES[1]).values():
        assert _families({expr}) <= known | {"up"}


def _families(expressions: set[str]) -> set[str]:
    return {_family(name) for expr in expressions for name in METRIC.findall(expr)}


def _family(name: str) -> str:
    """Return the family's name, as the collector has it."""
    for part in PARTS:
        name = name.removesuffix(part)
    return name
