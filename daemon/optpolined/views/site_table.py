"""The sites of a guest as rows, and one of them explained."""

from collections.abc import Callable, Mapping, Sequence

from optpolined.addresses import GuestVirtual
from optpolined.api.requests import ListSites
from optpolined.api.sites import Explanation, SiteRow, Target
from optpolined.codegen.forms import ORIGINAL, Code
from optpolined.config import matches
from optpolined.control.call_rates import CallRates
from optpolined.control.event_log import EventLog, form_name
from optpolined.control.learner import Learner
from optpolined.control.names import Names
from optpolined.kernel.symbols.symbols import Symbols
from optpolined.learning.strategy import SiteStatus
from optpolined.patching.inline_sites import Found
from optpolined.session.session import Session
from optpolined.views.explain import explain

__all__ = ("SKIPPED", "SiteTable")

SKIPPED = "skipped"
"""The state of a site that is left alone."""

_ORDERS: Mapping[str, Callable[[SiteRow], float]] = {
    "calls": lambda row: -row.calls_per_second,
    "misses": lambda row: -row.misses_per_second,
}


class SiteTable:
    """All sites of one attachment; ``forms`` returns the forms of those that were ever changed."""

    def __init__(
        self,
        *,
        session: Session,
        learner: Learner,
        names: Names,
        rates: CallRates,
        event_log: EventLog,
        forms: Callable[[], Mapping[GuestVirtual, Found]],
    ) -> None:
        self._session = session
        self._learner = learner
        self._names = names
        self._rates = rates
        self._event_log = event_log
        self._forms = forms

    def rows(self, asked: ListSites) -> Sequence[SiteRow]:
        """Return every requested site in order; ``asked.top`` does not cut it."""
        symbols, reasons = self._session.survey.symbols, self._session.survey.inventory.reasons
        statuses, forms = self._learner.site_statuses(), self._forms()
        rows = []
        for site in sorted(statuses.keys() | reasons.keys()):
            state = statuses[site].state if site in statuses else SKIPPED
            if asked.states and state not in asked.states:
                continue
            if asked.pattern == "*" or matches(_home(symbols, site), [asked.pattern]):
                rows.append(self._row(site, statuses.get(site), forms))
        key = _ORDERS.get(asked.order)
        return rows if key is None else sorted(rows, key=key)

    def explain(self, name: str) -> Explanation:
        """Explain one site.

        :raise NameRefusedError: the name means no site that may be changed, or more than one.
        :raise KernelError: the guest is not what it was at attach.
        """
        site = self._names.site(name)
        row = self._row(site, self._learner.site_statuses().get(site), self._forms())
        return explain(
            self._session, self._session.survey.inventory.eligible[site], row, self._event_log
        )

    def _row(
        self, site: GuestVirtual, status: SiteStatus | None, forms: Mapping[GuestVirtual, Found]
    ) -> SiteRow:
        name = self._names.site_name(site)
        if status is None:
            reason = self._session.survey.inventory.reasons.get(site, "")
            return SiteRow(name, f"{site:#x}", SKIPPED, reason, form_name(ORIGINAL))
        standing = forms.get(site, ORIGINAL)
        rate = self._rates.of(site)
        return SiteRow(
            site=name,
            address=f"{site:#x}",
            state=status.state,
            reason=status.reason,
            form=form_name(standing),
            targets=self._targets(site, standing, status),
            calls_per_second=rate.calls_per_second,
            misses_per_second=rate.misses_per_second,
        )

    def _targets(
        self, site: GuestVirtual, standing: Found, status: SiteStatus
    ) -> tuple[Target, ...]:
        form = standing if isinstance(standing, Code) and standing.targets else status.wanted
        targets = form.targets if isinstance(form, Code) else ()
        shares = dict(self._learner.shares.get(site, ()))
        name = self._session.survey.symbols.name
        return tuple(
            Target(name(target), f"{target:#x}", shares.get(target))
            for target in dict.fromkeys(targets)
        )


def _home(symbols: Symbols, site: GuestVirtual) -> str:
    """Return the function that a site is in, as patterns see it."""
    name = symbols.site_name(site)
    return "" if name is None else name.pattern_name
