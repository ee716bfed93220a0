"""Another configuration while a guest is attached: what of it can be adopted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from optpolined.config import GuestConfig

__all__ = ("Reload", "compare")

_ADOPTED = ("learning", "policy")
"""The sections that hold from the next epoch on; what the others say was used to attach."""


@dataclass(frozen=True, slots=True)
class Reload:
    """A configuration that was read again."""

    config: GuestConfig
    """To go on by: the old one, with what can be adopted of the new one."""
    changed: tuple[str, ...]
    """The keys of it that are others now."""
    left: tuple[str, ...]
    """The keys that are others in the file, but cannot change while a guest is attached."""

    def __str__(self) -> str:
        changed = f"changed: {', '.join(self.changed)}" if self.changed else "nothing has changed"
        left = f"; only a restart changes {', '.join(self.left)}" if self.left else ""
        return f"{changed}{left}"


def compare(old: GuestConfig, new: GuestConfig) -> Reload:
    """Find out what of ``new`` can be adopted in the place of ``old``."""
    differ = tuple(_differ(old.model_dump(), new.model_dump()))
    adopted = {section: getattr(new, section) for section in _ADOPTED}
    return Reload(
        old.model_copy(update=adopted),
        tuple(key for key in differ if key.startswith(_ADOPTED)),
        tuple(key for key in differ if not key.startswith(_ADOPTED)),
    )


def _differ(old: Mapping[str, object], new: Mapping[str, object], path: str = "") -> Iterator[str]:
    """The keys under which the two differ; pins are one key, for their names have dots."""
    for key, value in new.items():
        before, place = old[key], f"{path}{key}"
        if isinstance(value, dict) and isinstance(before, dict) and key != "pins":
            yield from _differ(before, value, f"{place}.")
        elif before != value:
            yield place
