"""Another configuration while a guest is attached: which parts can take effect."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from optpolined.config import GuestConfig

__all__ = ("Reload", "compare")

_RELOADED = ("learning", "policy")
"""The sections that hold from the next epoch on; the others were used to attach."""


@dataclass(frozen=True, slots=True)
class Reload:
    """A configuration that was read again."""

    config: GuestConfig
    """The old one, with the sections of the new one that can take effect."""
    changed: tuple[str, ...]
    """The keys that differ now."""
    left: tuple[str, ...]
    """The keys that differ in the file, but cannot change while a guest is attached."""

    def __str__(self) -> str:
        changed = f"changed: {', '.join(self.changed)}" if self.changed else "nothing has changed"
        left = f"; only a restart changes {', '.join(self.left)}" if self.left else ""
        return f"{changed}{left}"


def compare(old: GuestConfig, new: GuestConfig) -> Reload:
    """Put the sections of ``new`` that can take effect into ``old``, and name what differs."""
    differ = tuple(_differ(old.model_dump(), new.model_dump()))
    sections = {section: getattr(new, section) for section in _RELOADED}
    return Reload(
        old.model_copy(update=sections),
        tuple(key for key in differ if key.startswith(_RELOADED)),
        tuple(key for key in differ if not key.startswith(_RELOADED)),
    )


def _differ(old: Mapping[str, object], new: Mapping[str, object], path: str = "") -> Iterator[str]:
    """The keys under which the two differ; pins are one key, because their names have dots."""
    for key, value in new.items():
        before, place = old[key], f"{path}{key}"
        if isinstance(value, dict) and isinstance(before, dict) and key != "pins":
            yield from _differ(before, value, f"{place}.")
        elif before != value:
            yield place
