"""The operator's overrides: pins, bans, reverted sites, and a freeze.

They are kept by name.  So they survive a reset of the guest, which moves its kernel, and a module
that is unloaded and loaded again.  A pattern holds for modules that are loaded later too.
"""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Self

from pydantic import ConfigDict

from optpolined.config import PolicyConfig

__all__ = ("Overrides", "Standstill")


class Standstill(Enum):
    """Whether learning stands still."""

    NONE = "none"
    FROZEN = "frozen"
    """All sites stay as they are."""
    REVERTED = "reverted"
    """All sites are put back, and stay so."""


@dataclass(slots=True)
class Overrides:
    """What holds now, from the configuration or by the operator's commands."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    policy: PolicyConfig
    """The policy that the commands were given on top of."""
    pins: dict[str, str]
    """The target of each pinned site."""
    bans: list[str]
    """Sites, and patterns of functions."""
    reverted: list[str]
    """Sites that are banned until they are relearned."""
    standstill: Standstill

    @classmethod
    def of_policy(cls, policy: PolicyConfig) -> Self:
        """Return what a configuration says by itself."""
        return cls(policy, dict(policy.pins), list(policy.bans), [], Standstill.NONE)

    def reload_policy(self, policy: PolicyConfig) -> None:
        """Take pins and bans from a configuration; those of earlier commands are dropped."""
        self.policy = policy
        self.pins = dict(policy.pins)
        self.bans = list(policy.bans)

    def resume(self, saved: "Overrides") -> None:
        """Take over what a daemon that died has left.

        Its pins and bans are dropped where it had another policy, as :meth:`reload_policy` does.
        """
        self.reverted = list(saved.reverted)
        self.standstill = saved.standstill
        if saved.policy == self.policy:
            self.pins = dict(saved.pins)
            self.bans = list(saved.bans)
