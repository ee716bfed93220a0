"""Sees to it that the strategy's decisions obey the rules, and tells where every site stands."""

from collections.abc import Collection, Sequence

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Code
from optpolined.config import PolicyConfig, matches
from optpolined.kernel.symbols import Symbols
from optpolined.learning.policy import Ruling
from optpolined.service.learner import Learner
from optpolined.service.naming import Names
from optpolined.service.rules import Rules
from optpolined.service.survey import ModuleChange, Survey
from optpolined.telemetry.requests import Ban, Pin, Unban, Unpin
from optpolined.telemetry.status import RuledSite

__all__ = ("Governor",)

_SHOWN = 64


class Governor:
    """The rules over one guest while it is attached."""

    def __init__(self, rules: Rules, survey: Survey, learner: Learner, names: Names) -> None:
        self._rules = rules
        self._survey = survey
        self._learner = learner
        self._names = names
        self._rulings: dict[GuestVirtual, Ruling] = {}
        self.follow()

    def follow(self) -> None:
        """Rule over the sites that there are now."""
        self._rulings = self._rules.rulings(self._names)
        self._learner.rule(self._rulings)

    def change(self, request: Pin | Unpin | Ban | Unban) -> str:
        """Do what was asked, and answer it in a line.

        :raise NameRefusedError: it cannot be; nothing has changed.
        """
        rules, names = self._rules, self._names
        match request:
            case Pin(site=site, target=target):
                says = rules.pin(names, site, target)
            case Unpin(site=site):
                says = rules.unpin(names, site)
            case Ban(what=what):
                says = rules.ban(names, what)
            case Unban(what=what):
                says = rules.unban(names, what)
        self.follow()
        return says

    def adopt(self, policy: PolicyConfig) -> None:
        """Go by another policy from now on."""
        self._learner.follow(ModuleChange(self._survey.admit(policy), ()))
        self._rules.adopt(policy)
        self.follow()

    def pinned(self) -> Collection[GuestVirtual]:
        """The sites that have the one target that somebody gave them."""
        return {site for site, ruling in self._rulings.items() if ruling.target is not None}

    def ruled(self) -> tuple[RuledSite, ...]:
        """The first sites that somebody has decided about."""
        symbols = self._survey.symbols
        return tuple(
            RuledSite(symbols.name(site), ruling.state, ruling.reason)
            for site, ruling in sorted(self._rulings.items())[:_SHOWN]
        )

    def rows(self, pattern: str) -> Sequence[dict[str, str | int | None]]:
        """Where each site stands whose ``function``, or ``module:function``, matches."""
        symbols, inventory = self._survey.symbols, self._survey.inventory
        told = self._learner.status()
        rows: list[dict[str, str | int | None]] = []
        for site in sorted(told.keys() | inventory.reasons.keys()):
            if not matches(_home(symbols, site), [pattern]):
                continue
            if site in told:
                state, reason, form = told[site].state, told[site].reason, told[site].wanted
                targets = form.targets if isinstance(form, Code) else ()
            else:
                state, reason, targets = "skipped", inventory.reasons[site], ()
            rows.append(
                {
                    "site": symbols.name(site),
                    "address": f"{site:#x}",
                    "state": state,
                    "reason": reason,
                    "targets": ", ".join(map(symbols.name, targets)),
                }
            )
        return rows


def _home(symbols: Symbols, site: GuestVirtual) -> str:
    """The function that a site is in, as patterns see it."""
    function = symbols.function(site)
    if function is None:
        return ""
    return f"{function.module}:{function.name}" if function.module else function.name
