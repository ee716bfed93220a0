"""Makes the status of an attached guest."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from optpolined import __version__
from optpolined.addresses import GuestVirtual
from optpolined.api.refusal import Refusal
from optpolined.api.status import DaemonPhase, HotSite, Status, Versions
from optpolined.codegen.forms import ORIGINAL, Chain, Form
from optpolined.config import Settings
from optpolined.control.arena_budget import ArenaBudget
from optpolined.control.call_rates import CallRates, Rate
from optpolined.control.event_log import EventLog
from optpolined.control.learner import Learner
from optpolined.control.operator import Operator
from optpolined.control.overrides import Standstill
from optpolined.kernel.module.abi import ABI_VERSION
from optpolined.patching.inline_sites import Found
from optpolined.session.link import Link
from optpolined.session.session import Session
from optpolined.session.stub_handover import StubHandover

__all__ = ("StatusView",)


@dataclass(frozen=True, slots=True)
class StatusView:
    """The parts that the status of one attachment is made of."""

    guest: str
    settings: Settings
    link: Link
    session: Session
    stub_handover: StubHandover
    learner: Learner
    operator: Operator
    rates: CallRates
    arena_budget: ArenaBudget
    event_log: EventLog
    attached_at: float
    """As time.monotonic() gives it."""

    def make_status(
        self,
        phase: DaemonPhase,
        epoch: int,
        forms: Mapping[GuestVirtual, Found],
        before: Status,
    ) -> Status:
        """Return the status of now.

        :param forms: The forms of the sites that were ever changed.
        :param before: The previous status; what cannot be read now is taken from it.
        """
        session, tally, learner = self.session, self.session.tally, self.learner
        is_away = phase is DaemonPhase.MIGRATING  # even to read may take stops
        inventory = session.survey.inventory
        promoted = promoted_chains(learner, forms)
        rates = self.rates.promoted(promoted)
        real = {site: _form(forms.get(site)) for site in promoted}
        worth = self.rates.worth(rates, real, learner.shares, self.settings.config.learning.costs)
        int3_hits = before.int3_hits if is_away else tally.int3_hits + session.counters.int3_hits
        return Status(
            guest=self.guest,
            phase=phase,
            versions=Versions(__version__, ABI_VERSION, self.link.qemu),
            kernel=self.link.attachment.vmcoreinfo.osrelease,
            accelerator=self.link.accelerator,
            vcpus=self.link.vcpus,
            seconds=time.monotonic() - self.attached_at,
            attachments=tally.attachments,
            epoch=epoch,
            epochs=tally.epochs.summary(),
            stub_released=self.stub_handover.is_released,
            frozen=self.operator.standstill is not Standstill.NONE,
            found=inventory.found,
            eligible=len(inventory.eligible),
            skipped=self.skipped(),
            states=dict(Counter(learner.states.values())),
            targets_histogram=dict(Counter(len(chain.targets) for chain in promoted.values())),
            hottest=self._hottest(rates, promoted),
            ruled=self.operator.overridden_sites(),
            counted_calls=tally.counted_calls + self.rates.counted_calls,
            missed_calls=tally.missed_calls + self.rates.missed_calls,
            direct_per_second=worth.direct_per_second,
            missed_per_second=worth.missed_per_second,
            coverage=worth.coverage,
            learning_overhead_share=worth.learning_overhead_share,
            cycles_saved_per_second=worth.cycles_saved_per_second,
            protocol=self.settings.config.poke.protocol.value,
            pokes=tally.pokes,
            refused=dict(tally.refused),
            int3_hits=int3_hits,
            poke_table_defects=session.poke_table_defects,
            arena=self.arena_budget.use_of(session.arena),
            stops=tally.stops.summary(),
            stop_budget_seconds=self.settings.config.poke.stop_budget_microseconds / 1e6,
            graces=tally.graces.summary(),
            recoveries=tally.recoveries,
            rescues=tally.rescues,
            guardian_restarts=tally.guardian_restarts,
            read_errors=tally.read_errors,
            journal=self.event_log.journal(),
        )

    def skipped(self) -> dict[str, int]:
        """Return how many sites are left alone, by reason; those without space are eligible too."""
        roomless = len(self.arena_budget.denied) + self.arena_budget.waiting
        skipped = dict(self.session.survey.inventory.skipped)
        return skipped | {str(Refusal.ARENA_FULL): roomless} if roomless else skipped

    def _hottest(
        self, rates: Mapping[GuestVirtual, Rate], promoted: Mapping[GuestVirtual, Chain]
    ) -> tuple[HotSite, ...]:
        name = self.session.survey.symbols.name
        return tuple(
            HotSite(
                name(site),
                tuple(name(target) for target in promoted[site].targets),
                rate.calls_per_second,
                rate.misses_per_second,
            )
            for site, rate in list(rates.items())[: self.settings.config.metrics.hottest_sites]
        )


def promoted_chains(
    learner: Learner, forms: Mapping[GuestVirtual, Found]
) -> dict[GuestVirtual, Chain]:
    """Return the sites whose calls are direct now, in the forms that the strategy decided."""
    return {
        site: form
        for site, form in learner.as_decided(forms).items()
        if isinstance(form, Chain) and form.targets
    }


def _form(found: Found) -> Form:
    return found if isinstance(found, Form) else ORIGINAL
