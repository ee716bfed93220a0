"""Shortens each duration in the rules for a test, and changes nothing else.

The ranges in square brackets are fifteen times shorter, so that five minutes are 20 s, in which
there are as many scrapes a second apart as there are in five minutes 15 s apart.  What an alert
waits by ``for`` is 180 times shorter: an hour is 20 s.  The rest of an expression, thresholds
included, is as the operator has it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

__all__ = ("CONFIGS", "RULE_FILES", "expressions", "groups", "seen_through", "without_thresholds")

CONFIGS = Path("configs/prometheus")
RULE_FILES = (CONFIGS / "optpolined.rules.yml", CONFIGS / "optpolined.alerts.yml")
RANGES_SHORTER = 15
WAITS_SHORTER = 180

_SECONDS = {"s": 1, "m": 60, "h": 3600}
_RANGE = re.compile(r"\[(\d+)([smh])\]")
_COMPARISON = re.compile(r"(?<![=!<>])(==|!=|>=|<=|>|<)(?![=~])")
_SELECTOR = re.compile(r"(\{[^}]*\})")


def seen_through(rules: Path, directory: Path) -> Path:
    """Copy a rule file to ``directory``, with its durations shortened."""
    document: dict[str, Any] = yaml.safe_load(rules.read_text("utf-8"))
    for rule in (rule for group in document["groups"] for rule in group["rules"]):
        rule["expr"] = _RANGE.sub(
            lambda found: f"[{_shorter(found[1], found[2], RANGES_SHORTER)}]", rule["expr"]
        )
        if "for" in rule:
            rule["for"] = _shorter(rule["for"][:-1], rule["for"][-1], WAITS_SHORTER)
    copy = directory / rules.name
    copy.write_text(yaml.safe_dump(document), encoding="utf-8")
    return copy


def _shorter(number: str, unit: str, times: int) -> str:
    return f"{int(number) * _SECONDS[unit] * 1000 // times}ms"


def groups(rules: Path) -> Iterator[dict[str, Any]]:
    """Yield each rule of a file."""
    document: dict[str, Any] = yaml.safe_load(rules.read_text("utf-8"))
    for group in document["groups"]:
        yield from group["rules"]


def expressions(rules: Path) -> dict[str, str]:
    """Return the expression of each rule, by its name."""
    return {rule.get("alert") or rule["record"]: rule["expr"] for rule in groups(rules)}


def without_thresholds(expr: str) -> list[str]:
    """Return what an alert looks at, so that it gives data even if it does not fire.

    Each comparison gives 0 or 1.  The parts around an ``unless`` are separate, because the second
    removes results of the first.
    """
    parts = re.split(r"\bunless\b(?: (?:on|ignoring) \([^)]*\))?", expr)
    return ["".join(map(_with_bool, _SELECTOR.split(part))) for part in parts]


def _with_bool(text: str) -> str:
    return text if text.startswith("{") else _COMPARISON.sub(r"\1 bool", text)
