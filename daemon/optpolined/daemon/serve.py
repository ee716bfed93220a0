"""Manages a guest from attach to detach, through resets and back."""

import gc
import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from optpolined.api.status import Status
from optpolined.config import GuestConfig, Settings
from optpolined.control.override_file import OverrideFile
from optpolined.control.overrides import Overrides
from optpolined.control.recorder import Recording
from optpolined.daemon.endpoints import Endpoints
from optpolined.daemon.job import Job
from optpolined.daemon.loop import ReconcileLoop
from optpolined.kernel.errors import GuardedError, KernelError
from optpolined.qemu.errors import QemuError
from optpolined.session.attach import attach
from optpolined.session.link import AttachRefusedError, connect, refuse_on_failure
from optpolined.telemetry.notify import Notifier
from optpolined.views.report import RunReport

__all__ = ("Options", "serve")

_log = logging.getLogger(__name__)

_REATTACH_SECONDS = 1.0
"""Between two looks at whether a guest that was reset has its module again."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks of one run."""

    duration_seconds: float | None = None
    audit: bool = False
    force: bool = False
    record: Path | None = None
    """A file to write what learning sees to."""
    reread: Callable[[], GuestConfig | None] = lambda: None
    """Asked now and then for another configuration; ``None``: go on by the one there is."""
    notifier: Notifier = field(default_factory=Notifier)
    """The service manager, if there is one."""


def serve(
    guest: str,
    config: GuestConfig,
    options: Options,
    stop: threading.Event,
    show: Callable[[Status], None],
) -> RunReport:
    """Manage a guest until ``stop`` is set or the time is over; everything is put back then.

    ``show`` gets the status once an epoch.  A guest that is reset, or goes back to a snapshot, is
    attached to anew as soon as it has its module again.

    :raise TraceError: the file to record to cannot be written.
    :raise AttachRefusedError: the guest cannot be attached to; nothing stays changed.
    :raise NothingToGainError: it has no retpolines.
    :raise OptpolinedError: the guest or QEMU failed while it was attached.
    """
    with ExitStack() as stack:
        job = Job(
            guest=guest,
            settings=Settings(config),
            audit=options.audit,
            force=options.force,
            duration_seconds=options.duration_seconds,
            stop=stop,
            show=show,
            overrides=Overrides.of_policy(config.policy),
            override_file=OverrideFile(config.runtime_directory, guest),
            endpoints=stack.enter_context(Endpoints(guest, config)),
            reread=options.reread,
            notifier=options.notifier,
        )
        if options.record is not None:
            job.recording = stack.enter_context(closing(Recording(options.record)))
        report = _serve(job)
        job.override_file.remove()
        return report


def _serve(job: Job) -> RunReport:
    job.notifier.send_status("attaching")
    report = _attach(job)
    last = False
    while report is None and not last:
        last = job.is_over  # then once more: sites of the guest may still have to be put back
        job.notifier.alive()
        job.stop.wait(0 if last else _REATTACH_SECONDS)
        try:
            report = _attach(job)
        except AttachRefusedError as error:  # it boots, or has no module yet
            if str(error) != job.endpoints.status.trouble:
                _log.warning("not attached: %s", error)
            _publish_trouble(job, str(error))
    return report or RunReport(job.guest, lost=True)


def _publish_trouble(job: Job, trouble: str) -> None:
    """Publish that the guest is not attached to; what was counted stays."""
    before, tally = job.endpoints.status, job.tally
    status = Status(
        guest=job.guest,
        trouble=trouble,
        versions=before.versions,
        attachments=tally.attachments,
        epochs=tally.epochs.summary(),
        frozen=before.frozen,
        counted_calls=tally.counted_calls,
        missed_calls=tally.missed_calls,
        protocol=before.protocol,
        pokes=tally.pokes,
        refused=dict(tally.refused),
        int3_hits=before.int3_hits,
        stops=tally.stops.summary(),
        stop_budget_seconds=before.stop_budget_seconds,
        graces=tally.graces.summary(),
        recoveries=tally.recoveries,
        rescues=tally.rescues,
        guardian_restarts=tally.guardian_restarts,
        read_errors=tally.read_errors,
    )
    job.endpoints.publish(status)
    job.notifier.send_status(f"not attached: {trouble}")
    job.show(status)


def _restore_overrides(job: Job) -> None:
    """Go on by the orders that a daemon that died was given; they hold from the first attach."""
    if job.attached_at is not None:
        return
    saved = job.override_file.read()
    if saved is not None:
        job.overrides.resume(saved)
        _log.warning("what the last daemon was ordered holds on; see `optpolinectl status`")


def _attach(job: Job) -> RunReport | None:
    """One attachment; ``None`` where the guest no longer is what was attached to.

    It was reset, went back to a snapshot, or says what makes no sense: only a new
    attachment finds out what stands in it then.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        link = stack.enter_context(
            connect(job.settings.config, tally=job.tally, alive=job.notifier.alive)
        )
        _restore_overrides(job)
        with refuse_on_failure():
            session = stack.enter_context(
                attach(link, job.settings, time.monotonic, force=job.force, tally=job.tally)
            )
            daemon = ReconcileLoop(job, link, session, attach_seconds=time.monotonic() - began)
        # What was read of the guest stays: the collector need not look at it each time.
        gc.freeze()
        sites = session.survey.inventory
        _log.info(
            "attached in %.1f s: %d sites, %d eligible",
            time.monotonic() - began,
            sites.found,
            len(sites.eligible),
        )
        try:
            job.endpoints.open()
            job.attached()
            daemon.run()
            daemon.detach()
        except GuardedError as error:
            _log.error(
                "%s, and not put back: in the guest, end it; then run "
                "`optpolined --guest %s --recover-only`",
                error,
                job.guest,
            )
            daemon.leave()
            return daemon.report()
        except KernelError as error:
            _log.warning("%s; attaching anew", error)
            session.leave()
            job.tally.read_errors += 1
            trouble = str(error)
        except QemuError:
            raise  # there is nothing left to put anything back through
        except BaseException:
            daemon.detach()
            raise
        else:
            return daemon.report()
        finally:
            daemon.end()
    _publish_trouble(job, trouble)
    return None
