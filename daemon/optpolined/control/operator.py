"""Sees to it that the strategy's decisions obey the rules that people made."""

from collections.abc import Callable, Collection

from optpolined.addresses import GuestVirtual
from optpolined.api.requests import Ban, Freeze, Pin, Relearn, Revert, Thaw, Unban, Unpin
from optpolined.api.status import OverriddenSite
from optpolined.config import PolicyConfig
from optpolined.control.learner import Learner
from optpolined.control.names import Names
from optpolined.control.override_file import SavedOverrides, Standstill
from optpolined.control.overrides import Overrides
from optpolined.learning.overridden import Override
from optpolined.session.survey import ModuleChange, Survey

__all__ = ("Operator", "OperatorCommand")

_SHOWN = 64

OperatorCommand = Pin | Unpin | Ban | Unban | Relearn | Freeze | Thaw | Revert
"""What people decide about sites."""


class Operator:
    """The rules over one guest while it is attached."""

    def __init__(
        self,
        rules: Overrides,
        survey: Survey,
        learner: Learner,
        names: Names,
        keep: Callable[[SavedOverrides], None] = lambda _: None,
    ) -> None:
        """:param keep: Called with all orders, after each that is new."""
        self._rules = rules
        self._keep = keep
        self._survey = survey
        self._learner = learner
        self._names = names
        self._overrides: dict[GuestVirtual, Override] = {}
        self.follow()

    @property
    def standstill(self) -> Standstill:
        """Whether nothing is to be learned now."""
        return self._rules.standstill

    def follow(self) -> None:
        """Rule over the sites that there are now."""
        self._overrides = self._rules.overrides(self._names)
        self._learner.rule(self._overrides)

    def change(self, order: OperatorCommand) -> str:
        """Do what was asked, and answer it in a line; the next epoch makes it so.

        :raise NameRefusedError: it cannot be; nothing has changed.
        """
        says = self._obey(order)
        self._keep(self._rules.saved_overrides())
        self.follow()
        return says

    def _obey(self, order: OperatorCommand) -> str:
        rules, names = self._rules, self._names
        match order:
            case Freeze():
                says = rules.freeze()
            case Thaw():
                says = rules.thaw()
            case Revert(site=None):
                says = rules.revert_all()
            case Revert(site=str(site)):
                says = rules.revert(names, site)
            case Relearn(site=site):
                where, says = rules.relearn(names, site)
                self._learner.relearn(where)
            case Pin(site=site, target=target):
                says = rules.pin(names, site, target)
            case Unpin(site=site):
                says = rules.unpin(names, site)
            case Ban(what=what):
                says = rules.ban(names, what)
            case Unban(what=what):
                says = rules.unban(names, what)
        return says

    def adopt(self, policy: PolicyConfig) -> None:
        """Go by another policy from now on."""
        self._learner.follow(ModuleChange(self._survey.admit(policy), ()))
        self._rules.adopt(policy)
        self._keep(self._rules.saved_overrides())
        self.follow()

    def pinned(self) -> Collection[GuestVirtual]:
        """The sites that have the one target that somebody gave them."""
        return {site for site, override in self._overrides.items() if override.target is not None}

    def ruled(self) -> tuple[OverriddenSite, ...]:
        """The first sites that somebody has decided about."""
        symbols = self._survey.symbols
        return tuple(
            OverriddenSite(symbols.name(site), override.state, override.reason)
            for site, override in sorted(self._overrides.items())[:_SHOWN]
        )
