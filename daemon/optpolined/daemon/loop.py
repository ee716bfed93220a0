"""The reconcile loop over one attached guest: observe, learn, poke, report."""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress

from optpolined.addresses import GuestVirtual
from optpolined.api.status import DaemonPhase
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form, Original
from optpolined.config import GuestConfig
from optpolined.control.arena_budget import ArenaBudget, fit
from optpolined.control.call_rates import CallRates
from optpolined.control.census_schedule import CensusSchedule
from optpolined.control.event_log import EventLog
from optpolined.control.learner import Learner
from optpolined.control.names import Names
from optpolined.control.operator import Operator
from optpolined.control.overrides import Standstill
from optpolined.control.recorder import Recorder
from optpolined.daemon.change_log import log_changes
from optpolined.daemon.job import Job
from optpolined.daemon.reload import compare
from optpolined.daemon.request_handler import RequestHandler
from optpolined.kernel.sites.attribution import Attributed
from optpolined.learning.audit import audit
from optpolined.learning.strategy import Snapshot
from optpolined.learning.trace.model import TraceHeader
from optpolined.patching.inline_sites import Found
from optpolined.qemu.errors import MonitorClosedError, ResumedError
from optpolined.session.link import Link
from optpolined.session.migration import has_migrated, is_migrating
from optpolined.session.session import Session
from optpolined.session.stub_handover import StubHandover
from optpolined.telemetry.notify import summary
from optpolined.views.fill_report import begin_report, fill_in_sites, fill_in_work
from optpolined.views.report import RunReport
from optpolined.views.site_table import SiteTable
from optpolined.views.status import StatusView, promoted_chains

__all__ = ("ReconcileLoop",)

_log = logging.getLogger(__name__)

_MIGRATION_SECONDS = 0.1
"""Between two looks at whether a migration has ended."""

_DISARM_ATTEMPTS = 3
"""The guest may be resumed from outside in the middle of a stop."""

_RETRY_EPOCHS = 20
"""A site that held foreign bytes is looked at again after so many epochs."""


class ReconcileLoop:
    """One guest under management; ``job.hub`` tells of it, and has what is asked for."""

    def __init__(self, job: Job, link: Link, session: Session, *, attach_seconds: float) -> None:
        self._job = job
        self._link = link
        self._session = session
        self._stub_handover = StubHandover(job.guest, link, session)
        self._attached_at = time.monotonic()
        self._learner = Learner(job.settings.config.learning, session, self._recorder())
        survey = session.survey
        inventory = survey.inventory
        names = Names(
            survey.symbols, inventory.eligible, inventory.reasons, session.counters.is_target
        )
        self._operator = Operator(
            job.overrides, survey, self._learner, names, job.override_file.write
        )
        self._forms: dict[GuestVirtual, Found] = {}
        self._shunned: dict[GuestVirtual, int] = {}
        self._epoch = 0
        self._epoch_began = self._attached_at
        self._has_left = False
        self._rates = CallRates()
        self._arena_budget = ArenaBudget(session.patcher.block_bytes, self._rates)
        self._event_log = EventLog(time.time, survey.symbols.name)
        self._handler = RequestHandler(
            self._stub_handover,
            session.static_calls,
            self._operator,
            SiteTable(
                session=session,
                learner=self._learner,
                names=names,
                rates=self._rates,
                event_log=self._event_log,
                forms=lambda: self._forms,
            ),
        )
        self._census_schedule = CensusSchedule()
        self._status_view = StatusView(
            guest=job.guest,
            settings=job.settings,
            link=link,
            session=session,
            stub_handover=self._stub_handover,
            learner=self._learner,
            operator=self._operator,
            rates=self._rates,
            arena_budget=self._arena_budget,
            event_log=self._event_log,
            attached_at=self._attached_at,
        )
        self._report = begin_report(job.guest, link, session, attach_seconds)

    def _recorder(self) -> Recorder | None:
        if self._job.recording is None:
            return None
        kernel, learning = self._link.attachment.vmcoreinfo, self._job.settings.config.learning
        header = TraceHeader(kernel.osrelease, kernel.build_id, learning.strategy, learning)
        return self._job.recording.attach(header, self._session.survey.symbols.name)

    def run(self) -> None:
        """Reconcile once an epoch until the end; then audit, where asked to.

        Requests are carried out between the epochs.

        :raise OptpolinedError: the guest or QEMU failed.
        """
        requests = self._job.endpoints.requests
        requests.open()
        self._publish(self._at_work())
        self._job.notifier.ready()
        try:
            while not self._job.is_over and not self._has_migrated():
                self._one_epoch()
                self._rest()
        except MonitorClosedError:
            if self._job.endpoints.status.phase is not DaemonPhase.MIGRATING:
                raise
            self._has_left = True
        finally:
            requests.close()
        if self._has_left:
            return
        if self._job.audit and not self._job.stop.is_set() and self._pause() is None:
            self._publish(DaemonPhase.AUDITING)
            self._audit()

    def _one_epoch(self) -> None:
        began = time.monotonic()
        phase = self._pause()
        if phase is not DaemonPhase.MIGRATING:
            self._forms = self._session.look()
        if phase is None and self._operator.standstill is not Standstill.NONE:
            self._stand_still()
            phase = DaemonPhase.FROZEN
        elif phase is None:
            self._reconcile()
            if self._census_schedule.is_due(
                self._job.settings.config.learning.census, time.monotonic()
            ):
                self._take_census()
        elif phase is DaemonPhase.RELEASED:
            self._rates.update(self._snapshot())
        self._session.tally.epochs.add(time.monotonic() - began)
        self._publish(phase or self._at_work())

    def _pause(self) -> DaemonPhase | None:
        """Why nothing can be changed now; ``None`` where it can."""
        if self._stub_handover.is_released:
            return DaemonPhase.RELEASED
        if is_migrating(self._link.monitor):
            return DaemonPhase.MIGRATING
        return None if self._link.monitor.status() == "running" else DaemonPhase.PAUSED

    def _at_work(self) -> DaemonPhase:
        if self._operator.standstill is not Standstill.NONE:
            return DaemonPhase.FROZEN
        return DaemonPhase.RUNNING if self._promoted() else DaemonPhase.LEARNING

    def _rest(self) -> None:
        """Wait for the next epoch, and carry out what is asked for meanwhile."""
        end = time.monotonic() + self._job.settings.config.learning.epoch_milliseconds / 1e3
        while (left := end - time.monotonic()) > 0 and not self._job.is_over:
            self._job.rest(left)
            if (config := self._job.reread()) is not None:
                self._reload(config)
            self._handler.answer_waiting(
                self._job.endpoints.requests,
                self._pause,
                lambda: self._publish(self._pause() or self._at_work()),
            )

    def _reload(self, config: GuestConfig) -> None:
        """Use another configuration, as far as that is possible while the guest is attached.

        The holder of the settings reaches all that reads them.  What keeps state by them is told.
        """
        settings = self._job.settings
        reread = compare(settings.config, config)
        with self._job.notifier.reloading():
            settings.config = reread.config
            self._learner.reload(reread.config.learning)
            self._operator.reload_policy(reread.config.policy)
        _log.info(
            "the configuration is read again: %s; what was asked of pins and bans is forgotten",
            reread,
        )

    def _has_migrated(self) -> bool:
        return self._has_left or has_migrated(self._link.monitor)

    def _await_migration(self) -> None:
        """Wait for the end of a migration, to know where there is something to put back."""
        said = False
        while not self._has_left and self._pause() is DaemonPhase.MIGRATING:
            if not said:
                _log.warning("leaving, but the guest is migrating: waiting for the end of that")
            said = True
            self._publish(DaemonPhase.MIGRATING)
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
            self._publish(DaemonPhase.DETACHING)
        self._report_sites()
        if self._has_migrated():
            ended = ", and its QEMU has ended" if self._has_left else ""
            _log.warning("the guest has migrated%s: start optpolined where it runs now", ended)
            report.migrated_away = True
            self._session.leave()
        elif not self._stub_handover.take_to_leave():
            _log.error(
                "a debugger has the gdbstub: the sites are left as they are; end it, then run "
                "`optpolined --guest %s --recover-only`",
                report.guest,
            )
            report.left_to_debugger = True
            self._session.leave()
            report.text_differences = self._session.text_differences()
        else:
            running = self._link.monitor.status() == "running"
            report.text_differences = self._session.restore(running=running)
            report.text_identical_after_detach = not report.text_differences
            same = "identical to" if report.text_identical_after_detach else "NOT identical to"
            _log.info("detached: the text is %s what it was", same)
        if not self._has_left:
            self._publish(DaemonPhase.DETACHED)
        self._report_work()

    def leave(self) -> None:
        """Leave every site as it is: the guest allows no change any more.

        :raise OptpolinedError: the guest or QEMU failed.
        """
        self._session.leave()
        self._report_sites()
        self._report.text_differences = self._session.text_differences()
        self._report_work()

    def _report_sites(self) -> None:
        arena = self._job.endpoints.status.arena
        fill_in_sites(self._report, self._promoted(), self._status_view.skipped(), arena)

    def _report_work(self) -> None:
        seconds = time.monotonic() - self._attached_at
        fill_in_work(self._report, self._job.endpoints.status, seconds)

    def report(self) -> RunReport:
        """What this run did; complete after :meth:`detach` or :meth:`leave`."""
        return self._report

    def _take_census(self) -> None:
        """Count all calls for some short epochs: one, or as many as sites learn in them."""
        config, schedule = self._job.settings.config.learning.census, self._census_schedule
        census = self._session.census
        started = time.monotonic()
        try:
            if not census.start():
                self._learner.update_coverage()  # the guest may have refused it for good
                return
            self._epoch_began = time.monotonic()
            for _ in range(config.epochs_max):
                self._job.rest(schedule.epoch_seconds(config))
                if self._job.is_over or self._pause() is not None:
                    return
                self._reconcile(census.read())
                census.start_anew()
                if not self._learner.asks_for_census:
                    return
        except ResumedError as error:
            _log.warning("%s: the census is taken another time", error)
        finally:
            self._end_census()
            schedule.note(config, started, time.monotonic())

    def _end_census(self) -> None:
        for _ in range(_DISARM_ATTEMPTS):
            with suppress(ResumedError):
                self._session.census.stop()
                break
        else:
            self._session.census.stop()
        if self._session.census.refusal is not None:
            self._learner.update_coverage()

    def _reconcile(self, census: Attributed | None = None) -> None:
        """One epoch: what stands there, what was counted, what should stand there, make it so.

        :param census: What a census counted that was taken for all of the epoch.
        """
        self._epoch += 1
        self._follow_modules()
        snapshot = self._snapshot(census)
        self._rates.update(snapshot)
        self._learner.decide(snapshot)
        self._event_log.add_decision(self._epoch, self._learner.decision, self._learner.wanted)
        patcher = self._session.patcher
        changes = {
            site: form
            for site, form in self._arena_budget.share(
                self._learner.to_poke,
                self._forms,
                patcher.room_bytes,
                self._epoch,
                self._operator.pinned_sites,
            ).items()
            if form != self._forms.get(site, ORIGINAL) and self._shunned.get(site, 0) <= self._epoch
        }
        if not self._arena_budget.degraded:
            changes = dict(sorted(changes.items()))
        self._poke(fit(changes, patcher.block_bytes, self._session.arena.usage().free))
        with suppress(ResumedError):  # the request is made again next time
            self._session.recycle()

    def _stand_still(self) -> None:
        """One epoch in which nothing is learned; all sites are put back where that was asked."""
        self._epoch += 1
        self._follow_modules()
        self._rates.update(self._snapshot())
        if self._operator.standstill is Standstill.REVERTED:
            changed = (site for site, form in self._forms.items() if _is_ours(form))
            self._poke(dict.fromkeys(sorted(changed), ORIGINAL))
        with suppress(ResumedError):
            self._session.recycle()

    def _follow_modules(self) -> None:
        change = self._session.follow_modules()
        if change is None:
            return
        self._learner.follow_modules(change)
        self._operator.apply_overrides()
        self._rates.drop_sites(change.went)
        self._event_log.drop_sites(change.went)
        for site in change.went:
            self._forms.pop(site, None)
            self._shunned.pop(site, None)

    def _snapshot(self, census: Attributed | None = None) -> Snapshot:
        now = time.monotonic()
        seconds, self._epoch_began = now - self._epoch_began, now
        return self._learner.snapshot(self._epoch, seconds, self._forms, census)

    def _poke(self, wanted: Mapping[GuestVirtual, Form]) -> None:
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
        self._event_log.add_changes(self._epoch, wanted, report.sites)
        self._session.tally.pokes += report.done
        self._session.tally.refused += report.refused
        shunned = (site for site, reason in report.sites.items() if not reason.is_transient)
        self._shunned.update(dict.fromkeys(shunned, self._epoch + _RETRY_EPOCHS))

    def _audit(self) -> None:
        """Let every eligible site count all its calls for a while, and see how many are direct."""
        census = self._session.census
        covered = (
            self._learner.covered
            if self._job.settings.config.learning.census.enabled
            else frozenset()
        )
        forms: dict[GuestVirtual, Form] = dict.fromkeys(
            self._session.survey.inventory.eligible.keys() - covered, LEARNING
        )
        for site, chain in self._promoted().items():
            forms[site] = Chain(chain.targets, counts_hits=True)
        patcher = self._session.patcher
        if len(fit(forms, patcher.block_bytes, self._session.arena.usage().free)) < len(forms):
            _log.warning("not audited: the arena has no room for counting at all sites at once")
            return
        self._poke(forms)
        counted = None
        try:
            if covered and not census.start():
                _log.warning("not audited: %s", census.refusal or "no census can be taken now")
                return
            self._epoch_began = time.monotonic()
            end = self._epoch_began + self._job.settings.config.learning.audit_milliseconds / 1e3
            while (left := end - time.monotonic()) > 0 and not self._job.stop.is_set():
                self._job.rest(left)
            counted = census.read() if covered else None
        finally:
            if covered:
                self._end_census()
        coverage = audit(self._snapshot(counted))
        self._report.coverage = coverage.share
        self._report.audited_calls = {
            "direct": coverage.direct,
            "missed": coverage.missed,
            "unpromoted": coverage.unpromoted,
        }

    def _promoted(self) -> dict[GuestVirtual, Chain]:
        return promoted_chains(self._learner, self._forms)

    def _publish(self, phase: DaemonPhase) -> None:
        endpoints = self._job.endpoints
        endpoints.publish(
            self._status_view.make_status(phase, self._epoch, self._forms, endpoints.status)
        )
        self._job.notifier.send_status(summary(endpoints.status))
        self._job.show(endpoints.status)

    def end(self) -> None:
        """Add to the tally what counted anew with this attachment; it has ended."""
        tally = self._session.tally
        tally.counted_calls += self._rates.counted_calls
        tally.missed_calls += self._rates.missed_calls
        tally.int3_hits = self._job.endpoints.status.int3_hits


def _is_ours(form: Found) -> bool:
    """Whether a site holds something of ours that can be put back."""
    return form is not None and not isinstance(form, Original)
