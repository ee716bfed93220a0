"""The reconcile loop over one attached guest: observe, learn, poke, report."""

import logging
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.lab.trace import TraceHeader
from optpolined.learning.audit import audit
from optpolined.learning.strategy import Snapshot
from optpolined.qemu.errors import MonitorClosedError, ResumedError
from optpolined.service.answers import answer
from optpolined.service.attach import Link
from optpolined.service.events import log_changes
from optpolined.service.governor import Governor
from optpolined.service.inline import Found
from optpolined.service.job import Job
from optpolined.service.learner import Learner
from optpolined.service.lending import Lending
from optpolined.service.migration import has_migrated, is_migrating
from optpolined.service.naming import Names
from optpolined.service.patcher import HELD_UP
from optpolined.service.rates import Rates
from optpolined.service.recorder import Recorder
from optpolined.service.room import Room, fit
from optpolined.service.session import Session
from optpolined.telemetry.notify import summary
from optpolined.telemetry.report import Report, SiteCounts, StopCounts
from optpolined.telemetry.requests import Requests
from optpolined.telemetry.status import HotSite, Phase, Status, StopSummary

__all__ = ("Daemon",)

_log = logging.getLogger(__name__)

_HOTTEST = 12

_MIGRATION_SECONDS = 0.1
"""Between two looks at whether a migration has ended."""

_PASSING = frozenset({"arena_full", HELD_UP})
"""Why a site was not changed that may be at the next epoch; where there are others, it rests."""

_RETRY_EPOCHS = 20
"""A site that held somebody else's bytes is looked at again after so many epochs."""


class Daemon:
    """One guest under management.

    ``status`` may be read, and ``requests`` put, from any thread.
    """

    def __init__(self, job: Job, link: Link, session: Session, *, attach_seconds: float) -> None:
        self._job = job
        self._link = link
        self._session = session
        self._lending = Lending(job.guest, link, session)
        self.requests = Requests()
        self._config = job.config
        self._attached_at = time.monotonic()
        self._attach_seconds = attach_seconds
        self._learner = Learner(job.config.learning, session, self._recorder())
        survey = session.survey
        inventory = survey.inventory
        names = Names(survey.symbols, inventory.eligible, inventory.reasons, session.is_target)
        self._governor = Governor(job.rules, survey, self._learner, names)
        self._forms: dict[GuestVirtual, Found] = {}
        self._shunned: dict[GuestVirtual, int] = {}
        self._epoch = 0
        self._epoch_began = self._attached_at
        self._has_left = False
        self._rates = Rates()
        self._room = Room(session.patcher.block_bytes)
        self._pokes = 0
        self._refused: Counter[str] = Counter()
        self._report = self._first_report(job.guest)
        self.status = self._make_status(Phase.LEARNING)

    def _recorder(self) -> Recorder | None:
        if self._job.recording is None:
            return None
        kernel, learning = self._link.attachment.vmcoreinfo, self._config.learning
        header = TraceHeader(kernel.osrelease, kernel.build_id, learning.strategy, learning)
        return self._job.recording.attach(header, self._session.survey.symbols.name)

    def run(self) -> None:
        """Reconcile once an epoch until the end; then audit, where asked to.

        Requests are carried out between the epochs.

        :raise OptpolinedError: the guest or QEMU failed.
        """
        try:
            while not self._job.is_over and not self._has_migrated():
                phase = self._pause()
                if phase is not Phase.MIGRATING:
                    self._forms = self._session.look()
                if phase is None:
                    self._reconcile()
                elif phase is Phase.RELEASED:
                    self._rates.update(self._snapshot())
                self._tell(phase or self._at_work())
                self._rest()
        except MonitorClosedError:
            if self.status.phase is not Phase.MIGRATING:
                raise
            self._has_left = True
        finally:
            self.requests.close()
        if self._has_left:
            return
        if self._job.audit and not self._job.stop.is_set() and self._pause() is None:
            self._tell(Phase.AUDITING)
            self._audit()

    def _pause(self) -> Phase | None:
        """Why nothing may be changed now; ``None`` where it may."""
        if self._lending.is_released:
            return Phase.RELEASED
        if is_migrating(self._link.monitor):
            return Phase.MIGRATING
        return None if self._link.monitor.status() == "running" else Phase.PAUSED

    def _at_work(self) -> Phase:
        return Phase.RUNNING if self._promoted() else Phase.LEARNING

    def _rest(self) -> None:
        """Wait for the next epoch, and carry out what is asked for meanwhile."""
        end = time.monotonic() + self._config.learning.epoch_milliseconds / 1e3
        while (left := end - time.monotonic()) > 0 and not self._job.is_over:
            self._job.rest(left)
            if (policy := self._job.reread()) is not None:
                with self._job.notifier.reloading():
                    self._job.config = self._job.config.model_copy(update={"policy": policy})
                    self._governor.adopt(policy)
            while (asked := self.requests.take()) is not None:
                said = answer(
                    asked.request,
                    lending=self._lending,
                    static_calls=self._session.static_calls,
                    governor=self._governor,
                    pause=self._pause(),
                )
                self._tell(self._pause() or self._at_work())
                asked.answer(said)

    def _has_migrated(self) -> bool:
        return self._has_left or has_migrated(self._link.monitor)

    def _await_migration(self) -> None:
        """Wait for the end of a migration, to know where there is something to put back."""
        said = False
        while not self._has_left and self._pause() is Phase.MIGRATING:
            if not said:
                _log.warning("leaving, but the guest is migrating: waiting for the end of that")
            said = True
            self._tell(Phase.MIGRATING)
            self._job.notifier.alive()
            time.sleep(_MIGRATION_SECONDS)

    def detach(self) -> None:
        """Put every site back and compare the text with what it was.

        :raise OptpolinedError: the guest or QEMU failed.
        """
        report = self._report
        self._job.notifier.stopping()
        self._await_migration()
        if not self._has_left:
            self._tell(Phase.DETACHING)
        self._sum_up_sites()
        if self._has_migrated():
            ended = ", and its QEMU has ended" if self._has_left else ""
            _log.warning("the guest has migrated%s: start optpolined where it runs now", ended)
            report.migrated_away = True
        elif not self._lending.take_to_leave():
            _log.error(
                "a debugger has the gdbstub: the sites are left as they are; end it, then run "
                "`optpolined --guest %s --recover-only`",
                report.guest,
            )
            report.left_to_debugger = True
            report.text_differences = self._session.text_differences()
        else:
            running = self._link.monitor.status() == "running"
            report.text_differences = self._session.restore(running=running)
            report.text_identical_after_detach = not report.text_differences
            same = "identical to" if report.text_identical_after_detach else "NOT identical to"
            _log.info("detached: the text is %s what it was", same)
        if not self._has_left:
            self._tell(Phase.DETACHED)
        self._sum_up_work()

    def leave(self) -> None:
        """Leave every site as it is: the guest allows no change any more.

        :raise OptpolinedError: the guest or QEMU failed.
        """
        self._sum_up_sites()
        self._report.text_differences = self._session.text_differences()
        self._sum_up_work()

    def _sum_up_sites(self) -> None:
        report = self._report
        report.promoted = len(self._promoted())
        report.sites.skipped, report.arena = self._skipped(), asdict(self.status.arena)
        report.targets_histogram = {
            str(size): count for size, count in sorted(self._histogram().items())
        }

    def _sum_up_work(self) -> None:
        report = self._report
        report.int3_hits = self.status.int3_hits
        report.seconds = time.monotonic() - self._attached_at
        stops = self.status.stops
        report.stops = StopCounts(
            stops.count, stops.p50_seconds, stops.p99_seconds, stops.max_seconds
        )
        report.pokes, report.refused = self._pokes, dict(self._refused)

    def report(self) -> Report:
        """What this run did; complete after :meth:`detach` or :meth:`leave`."""
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
        self._learner.decide(snapshot)
        self._room.note(snapshot)
        patcher = self._session.patcher
        changes = {
            site: form
            for site, form in self._room.share(
                self._learner.wanted,
                self._forms,
                patcher.room_bytes,
                self._epoch,
                self._governor.pinned(),
            ).items()
            if form != self._forms.get(site, ORIGINAL) and self._shunned.get(site, 0) <= self._epoch
        }
        if not self._room.degraded:
            changes = dict(sorted(changes.items()))
        self._poke(fit(changes, patcher.block_bytes, self._session.arena.usage().free))
        with suppress(ResumedError):  # the request is made again next time
            self._session.recycle()

    def _follow_modules(self) -> None:
        change = self._session.follow_modules()
        if change is None:
            return
        self._learner.follow(change)
        self._governor.follow()
        self._room.forget(change.went)
        for site in change.went:
            self._forms.pop(site, None)
            self._shunned.pop(site, None)

    def _snapshot(self) -> Snapshot:
        now = time.monotonic()
        seconds, self._epoch_began = now - self._epoch_began, now
        return self._learner.snapshot(self._epoch, seconds, self._forms)

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
        log_changes(wanted, report, self._session.survey.symbols.name)
        self._pokes += report.done
        self._refused += report.refused
        shunned = (site for site, reason in report.sites.items() if reason not in _PASSING)
        self._shunned.update(dict.fromkeys(shunned, self._epoch + _RETRY_EPOCHS))

    def _audit(self) -> None:
        """Let every eligible site count all its calls for a while, and see how many are direct."""
        forms: dict[GuestVirtual, Form] = dict.fromkeys(
            self._session.survey.inventory.eligible, LEARNING
        )
        for site, chain in self._promoted().items():
            forms[site] = Chain(chain.targets, counts_hits=True)
        patcher = self._session.patcher
        if len(fit(forms, patcher.block_bytes, self._session.arena.usage().free)) < len(forms):
            _log.warning("not audited: the arena has no room for counting at all sites at once")
            return
        self._poke(forms)
        end = time.monotonic() + self._config.learning.audit_milliseconds / 1e3
        while (left := end - time.monotonic()) > 0 and not self._job.stop.is_set():
            self._job.rest(left)
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
            for site, form in self._learner.told(self._forms).items()
            if isinstance(form, Chain) and form.targets
        }

    def _histogram(self) -> Counter[int]:
        return Counter(len(chain.targets) for chain in self._promoted().values())

    def _tell(self, phase: Phase) -> None:
        self.status = self._make_status(phase)
        self._job.notifier.status(summary(self.status))
        self._job.show(self.status)

    def _make_status(self, phase: Phase) -> Status:
        is_away = phase is Phase.MIGRATING  # even to read may take stops
        stops = self._session.stopper.statistics
        states = Counter(self._learner.states.values())
        inventory = self._session.survey.inventory
        rates = self._rates.promoted(self._learner.told(self._forms))
        missed = sum(rate.misses_per_second for rate in rates.values())
        return Status(
            guest=self._report.guest,
            phase=phase,
            kernel=self._report.kernel,
            accelerator=self._report.accel,
            vcpus=self._report.vcpus,
            seconds=time.monotonic() - self._attached_at,
            epoch=self._epoch,
            stub_released=self._lending.is_released,
            found=inventory.found,
            eligible=len(inventory.eligible),
            skipped=self._skipped(),
            states=dict(states),
            targets_histogram=dict(self._histogram()),
            hottest=self._hottest(),
            ruled=self._governor.ruled(),
            counted_calls=self._rates.counted_calls,
            direct_per_second=max(
                0.0, sum(rate.calls_per_second for rate in rates.values()) - missed
            ),
            missed_per_second=missed,
            pokes=self._pokes,
            refused=dict(self._refused),
            int3_hits=self.status.int3_hits if is_away else self._session.int3_hits,
            arena=self._room.use_of(self._session.arena),
            stops=StopSummary(
                count=stops.count,
                sum_seconds=stops.sum_seconds,
                p50_seconds=stops.quantile(0.5),
                p99_seconds=stops.quantile(0.99),
                max_seconds=stops.max_seconds,
                buckets=tuple(stops.buckets),
            ),
        )

    def _skipped(self) -> dict[str, int]:
        """The sites that are left alone; those for which there is no room are eligible too."""
        roomless = len(self._room.denied) + self._room.waiting
        skipped = dict(self._session.survey.inventory.skipped)
        return skipped | {"arena_full": roomless} if roomless else skipped

    def _hottest(self) -> tuple[HotSite, ...]:
        name = self._session.survey.symbols.name
        promoted = self._promoted()
        rates = self._rates.promoted(self._learner.told(self._forms))
        return tuple(
            HotSite(
                name(site),
                tuple(name(target) for target in promoted[site].targets),
                rate.calls_per_second,
                rate.misses_per_second,
            )
            for site, rate in list(rates.items())[:_HOTTEST]
        )
