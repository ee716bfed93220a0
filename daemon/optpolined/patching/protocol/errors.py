"""Errors of the poke engine; the tree is drawn in the package's docstring."""

from optpolined.addresses import GuestVirtual
from optpolined.api.refusal import Refusal
from optpolined.errors import OptpolinedError

__all__ = ("ChangeError", "PokeError", "SiteRefusedError")


class PokeError(OptpolinedError):
    """The root of the errors of this package: a change cannot be made."""


class ChangeError(PokeError):
    """The change itself makes no sense: its lengths differ, or nothing changes."""


class SiteRefusedError(PokeError):
    """A site that must stay as it is; ``reason`` says why."""

    def __init__(self, site: GuestVirtual, reason: Refusal) -> None:
        super().__init__(f"site {site:#x} is left alone: {reason}")
        self.site = site
        self.reason = reason
