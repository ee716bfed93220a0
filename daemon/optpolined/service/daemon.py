"""The reconcile loop over one attached guest: observe, learn, poke, report."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.config import GuestConfig
from optpolined.learning.audit import audit
from optpolined.learning.hysteresis import Hysteresis
from optpolined.learning.strategy import Snapshot
from optpolined.qemu.errors import ResumedError
from optpolined.service.attach import Link
from optpolined.service.migration import is_migrating
from optpolined.service.rates import Rates
from optpolined.service.session import Session
from optpolined.telemetry.report import Report, SiteCounts, StopCounts
from optpolined.telemetry.status import HotSite, Phase, Status, StopSummary

__all__ = ("Daemon", "Job")

_log = logging.getLogger(__name__)

_HOTTEST = 12

_RETRY_EPOCHS = 20
"""A site that held somebody else's bytes is looked at again after so many epochs."""


@dataclass(slots=True)
class Job:
    """What one run is to do: for how long from the first attach on, and who is told."""

    guest: str
    config: GuestConfig
    audit: bool
    force: bool
    duration_seconds: float | None
    stop: threading.Event
    show: Callable[[Status], None]
    attached_at: float | None = None
    """As time.monotonic() gives it."""

    @property
    def is_over(self) -> bool:
        """Whether the time is over, or somebody asked to leave."""
        return self.stop.is_set() or (
            self.duration_seconds is not None
            and self.attached_at is not None
            and time.monotonic() - self.attached_at >= self.duration_seconds
        )

    def attached(self) -> None:
        """Note that the guest is attached to; the time counts from the first."""
        if self.attached_at is None:
            self.attached_at = time.monotonic()


class Daemon:
    """One guest under management; ``status`` may be read from any thread."""

    def __init__(self, job: Job, link: Link, session: Session, *, attach_seconds: float) -> None:
        self._job = job
        self._link = link
        self._session = session
        self._config = job.config
        self._attached_at = time.monotonic()
        self._attach_seconds = attach_seconds
        self._strategy = Hysteresis(job.config.learning.hysteresis)
        self._state = self._strategy.initial(session.survey.inventory.eligible)
        self._states: dict[GuestVirtual, str] = {}
        self._wanted: dict[GuestVirtual, Form] = {}
        self._forms: dict[GuestVirtual, Form | None] = {}
        self._shunned: dict[GuestVirtual, int] = {}
        self._epoch = 0
        self._epoch_began = self._attached_at
        self._rates = Rates()
        self._pokes = 0
        self._refused: Counter[str] = Counter()
        self._report = self._first_report(job.guest)
        self.status = self._make_status(Phase.LEARNING)

    def run(self) -> None:
        """Reconcile once an epoch until the end; then audit, where asked to.

        :raise OptpolinedError: the guest or QEMU failed.
        """
        epoch_seconds = self._config.learning.epoch_milliseconds / 1e3
        while not self._job.is_over and not self._has_migrated():
            self._forms = self._session.look()
            phase = self._pause()
            if phase is None:
                self._reconcile()
                phase = Phase.RUNNING if self._promoted() else Phase.LEARNING
            self._tell(phase)
            self._job.stop.wait(epoch_seconds)
        if self._job.audit and not self._job.stop.is_set() and self._pause() is None:
            self._tell(Phase.AUDITING)
            self._audit()

    def _pause(self) -> Phase | None:
        """Why nothing may be changed now; ``None`` where it may."""
        if is_migrating(self._link.monitor):
            return Phase.MIGRATING
        return None if self._link.monitor.status() == "running" else Phase.PAUSED

    def _has_migrated(self) -> bool:
        return self._link.monitor.status() == "postmigrate"

    def detach(self) -> None:
        """Put every site back and compare the text with what it was.

        :raise OptpolinedError: the guest or QEMU failed.
        """
        report = self._report
        self._tell(Phase.DETACHING)
        report.promoted = len(self._promoted())
        report.targets_histogram = {
            str(size): count for size, count in sorted(self._histogram().items())
        }
        if self._has_migrated():
            _log.warning("the guest has migrated: start optpolined where it runs now")
            report.migrated_away = True
        else:
            running = self._link.monitor.status() == "running"
            report.text_differences = self._session.restore(running=running)
            report.text_identical_after_detach = not report.text_differences
        self._tell(Phase.DETACHED)
        report.int3_hits = self._session.int3_hits
        report.seconds = time.monotonic() - self._attached_at
        stops = self.status.stops
        report.stops = StopCounts(
            stops.count, stops.p50_seconds, stops.p99_seconds, stops.max_seconds
        )
        report.pokes, report.refused = self._pokes, dict(self._refused)

    def report(self) -> Report:
        """What this run did; complete after :meth:`detach`."""
        return self._report

    def _first_report(self, guest: str) -> Report:
        inventory = self._session.survey.inventory
        return Report(
            guest=guest,
            kernel=self._link.attachment.vmcoreinfo.osrelease,
            accel=self._link.accelerator,
            vcpus=self._link.vcpus,
            sites=SiteCounts(inventory.found, len(inventory.eligible), dict(inventory.skipped)),
            attach_seconds=self._attach_seconds,
        )

    def _reconcile(self) -> None:
        """One epoch: what stands there, what was counted, what should stand there, make it so."""
        self._epoch += 1
        self._follow_modules()
        snapshot = self._snapshot()
        self._rates.update(snapshot)
        self._state, decision = self._strategy.decide(self._state, snapshot)
        self._wanted.update(decision.wanted)
        self._states.update(decision.states)
        self._poke(
            {
                site: form
                for site, form in self._wanted.items()
                if form != self._forms.get(site, ORIGINAL)
                and self._shunned.get(site, 0) <= self._epoch
            }
        )
        with suppress(ResumedError):  # the request is made again next time
            self._session.recycle()

    def _follow_modules(self) -> None:
        change = self._session.follow_modules()
        if change is None:
            return
        self._state = self._strategy.add(self._state, change.came)
        self._state = self._strategy.forget(self._state, change.went)
        for site in change.went:
            self._wanted.pop(site, None)
            self._states.pop(site, None)
            self._forms.pop(site, None)
            self._shunned.pop(site, None)

    def _snapshot(self) -> Snapshot:
        now = time.monotonic()
        installed = {site: form for site, form in self._forms.items() if form is not None}
        counts = self._session.count()
        seconds, self._epoch_began = now - self._epoch_began, now
        return Snapshot(self._epoch, seconds, counts, installed)

    def _poke(self, wanted: dict[GuestVirtual, Form]) -> None:
        if not wanted:
            return
        try:
            report = self._session.apply(wanted)
        except ResumedError as error:
            _log.warning("%s: the change is looked at again", error)
            self._session.mend()
            return
        finally:
            self._forms = self._session.patcher.observe()
            self._epoch_began = time.monotonic()
        self._pokes += report.done
        self._refused += report.refused
        self._shunned.update(dict.fromkeys(report.sites, self._epoch + _RETRY_EPOCHS))

    def _audit(self) -> None:
        """Let every eligible site count all its calls for a while, and see how many are direct."""
        forms: dict[GuestVirtual, Form] = dict.fromkeys(
            self._session.survey.inventory.eligible, LEARNING
        )
        for site, chain in self._promoted().items():
            forms[site] = Chain(chain.targets, counts_hits=True)
        self._poke(forms)
        self._job.stop.wait(self._config.learning.audit_milliseconds / 1e3)
        coverage = audit(self._snapshot())
        self._report.coverage = coverage.share
        self._report.audited_calls = {
            "direct": coverage.direct,
            "missed": coverage.missed,
            "unpromoted": coverage.unpromoted,
        }

    def _promoted(self) -> dict[GuestVirtual, Chain]:
        return {
            site: form
            for site, form in self._forms.items()
            if isinstance(form, Chain) and form.targets
        }

    def _histogram(self) -> Counter[int]:
        return Counter(len(chain.targets) for chain in self._promoted().values())

    def _tell(self, phase: Phase) -> None:
        self.status = self._make_status(phase)
        self._job.show(self.status)

    def _make_status(self, phase: Phase) -> Status:
        stops = self._session.stopper.statistics
        states = Counter(self._states.values())
        inventory = self._session.survey.inventory
        rates = self._rates.promoted(self._forms)
        missed = sum(rate.misses_per_second for rate in rates.values())
        return Status(
            guest=self._report.guest,
            phase=phase,
            kernel=self._report.kernel,
            accelerator=self._report.accel,
            vcpus=self._report.vcpus,
            seconds=time.monotonic() - self._attached_at,
            epoch=self._epoch,
            found=inventory.found,
            eligible=len(inventory.eligible),
            skipped=dict(inventory.skipped),
            states=dict(states),
            targets_histogram=dict(self._histogram()),
            hottest=self._hottest(),
            counted_calls=self._rates.counted_calls,
            direct_per_second=max(
                0.0, sum(rate.calls_per_second for rate in rates.values()) - missed
            ),
            missed_per_second=missed,
            pokes=self._pokes,
            refused=dict(self._refused),
            int3_hits=self._session.int3_hits,
            stops=StopSummary(
                count=stops.count,
                sum_seconds=stops.sum_seconds,
                p50_seconds=stops.quantile(0.5),
                p99_seconds=stops.quantile(0.99),
                max_seconds=stops.max_seconds,
                buckets=tuple(stops.buckets),
            ),
        )

    def _hottest(self) -> tuple[HotSite, ...]:
        name = self._session.survey.symbols.name
        promoted = self._promoted()
        rates = self._rates.promoted(self._forms)
        return tuple(
            HotSite(
                name(site),
                tuple(name(target) for target in promoted[site].targets),
                rate.calls_per_second,
                rate.misses_per_second,
            )
            for site, rate in list(rates.items())[:_HOTTEST]
        )
