"""Manages a guest from attach to detach, through resets and back."""

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from optpolined.config import GuestConfig, PolicyConfig
from optpolined.kernel.errors import GuardedError, KernelError
from optpolined.qemu.errors import QemuError
from optpolined.service.attach import AttachRefusedError, connect, refuse_on_failure
from optpolined.service.daemon import Daemon
from optpolined.service.job import Job
from optpolined.service.recorder import Recording
from optpolined.service.rules import Rules
from optpolined.service.session import Session
from optpolined.service.stops import STOP_BUCKETS_SECONDS
from optpolined.telemetry.metrics import StatusCollector, serve_metrics
from optpolined.telemetry.notify import Notifier, summary
from optpolined.telemetry.report import Report
from optpolined.telemetry.server import serve_status, status_socket
from optpolined.telemetry.status import Status

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
    reread: Callable[[], PolicyConfig | None] = lambda: None
    """Asked now and then for another policy; ``None``: go on by the one there is."""
    notifier: Notifier = field(default_factory=Notifier)
    """The service manager, if there is one."""


def serve(
    guest: str,
    config: GuestConfig,
    options: Options,
    stop: threading.Event,
    show: Callable[[Status], None],
) -> Report:
    """Manage a guest until ``stop`` is set or the time is over; everything is put back then.

    ``show`` gets the status once an epoch.  A guest that is reset, or goes back to a snapshot, is
    attached to anew as soon as it has its module again.

    :raise TraceError: the file to record to cannot be written.
    :raise AttachRefusedError: the guest cannot be attached to; nothing stays changed.
    :raise NothingToGainError: it has no retpolines.
    :raise OptpolinedError: the guest or QEMU failed while it was attached.
    """
    job = Job(
        guest=guest,
        config=config,
        audit=options.audit,
        force=options.force,
        duration_seconds=options.duration_seconds,
        stop=stop,
        show=show,
        rules=Rules(config.policy),
        reread=options.reread,
        notifier=options.notifier,
    )
    with ExitStack() as stack:
        if options.record is not None:
            job.recording = stack.enter_context(closing(Recording(options.record)))
        return _serve(job)


def _serve(job: Job) -> Report:
    job.notifier.status("attaching")
    report = _attach(job)
    said = ""
    last = False
    while report is None and not last:
        last = job.is_over  # then once more, for the guest may hold what is to be put back
        job.notifier.alive()
        job.stop.wait(0 if last else _REATTACH_SECONDS)
        try:
            report = _attach(job)
        except AttachRefusedError as error:  # it boots, or has no module yet
            if str(error) != said:
                said = str(error)
                _log.warning("not attached: %s", said)
                job.notifier.status(f"not attached: {said}")
    return report or Report(job.guest, lost=True)


def _attach(job: Job) -> Report | None:
    """One attachment; ``None`` where the guest no longer is what was attached to.

    It was reset, went back to a snapshot, or says what makes no sense: what stands in it then is
    found out by attaching anew, and by nothing else.
    """
    began = time.monotonic()
    with connect(job.config, alive=job.notifier.alive) as link:
        with refuse_on_failure():
            session = Session(link, job.config, time.monotonic, force=job.force)
        # What was read of the guest stays: the collector need not look at it each time.
        gc.freeze()
        job.attached()
        seconds, sites = time.monotonic() - began, session.survey.inventory
        _log.info(
            "attached in %.1f s: %d sites, %d eligible", seconds, sites.found, len(sites.eligible)
        )
        daemon = Daemon(job, link, session, attach_seconds=seconds)
        try:
            with _published(job, daemon):
                job.notifier.status(summary(daemon.status))
                job.notifier.ready()
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
        except KernelError as error:
            _log.warning("%s; attaching anew", error)
            job.notifier.status(f"{error}; attaching anew")
            return None
        except QemuError:
            raise  # there is nothing left to put anything back through
        except BaseException:
            daemon.detach()
            raise
    return daemon.report()


@contextmanager
def _published(job: Job, daemon: Daemon) -> Iterator[None]:
    """Serve status and requests on the socket and, where configured, the metrics over HTTP."""
    path = status_socket(job.config.runtime_directory, job.guest)
    address, port = job.config.metrics.listen_address, job.config.metrics.port
    with ExitStack() as stack:
        try:
            stack.enter_context(serve_status(path, lambda: daemon.status, daemon.requests))
            if port:
                collector = StatusCollector(lambda: daemon.status, STOP_BUCKETS_SECONDS)
                stop, _ = serve_metrics(collector, address, port)
                stack.callback(stop)
        except OSError as error:
            raise AttachRefusedError(
                f"the status cannot be served at {path}, or metrics at {address}:{port}: "
                f"{error.strerror or error}"
            ) from error
        yield
