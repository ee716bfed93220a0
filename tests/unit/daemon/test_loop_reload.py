"""A reload reaches everything that works by the settings of an attached guest."""

import threading
import time
from pathlib import Path

import pytest

from optpolined.api.status import Status
from optpolined.config import GuestConfig
from optpolined.control.override_file import OverrideFile
from optpolined.control.overrides import Overrides
from optpolined.daemon.endpoints import Endpoints
from optpolined.daemon.job import Job
from optpolined.daemon.loop import ReconcileLoop
from optpolined.session.attach import attach
from tests.unit.session.attached_guest import AttachedGuest


def test_loop_status_and_session_read_the_settings_that_were_read_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    guest = AttachedGuest(monkeypatch)
    settings = guest.settings()
    old = settings.config
    new = GuestConfig.model_validate(
        old.model_dump(mode="json")
        | {"learning": {"epoch_milliseconds": 50, "census": {"enabled": False}}}
    )
    rereads = [new]
    stop = threading.Event()

    def show(status: Status) -> None:
        if status.epoch >= 2:
            stop.set()

    with (
        attach(guest.link(), settings, time.monotonic, force=False) as session,
        Endpoints("vm1", old) as endpoints,
    ):
        job = Job(
            guest="vm1",
            settings=settings,
            audit=False,
            force=False,
            duration_seconds=20,
            stop=stop,
            show=show,
            overrides=Overrides.of_policy(old.policy),
            override_file=OverrideFile(tmp_path, "vm1"),
            endpoints=endpoints,
            reread=lambda: rereads.pop() if rereads else None,
        )
        ReconcileLoop(job, guest.link(), session, attach_seconds=0).run()
        assert stop.is_set()
        assert session.settings.config.learning == new.learning
        assert job.settings.config.learning == new.learning
