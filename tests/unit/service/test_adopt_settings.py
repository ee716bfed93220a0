"""Settings that are read again while the daemon works."""

import logging
import threading
from pathlib import Path

import pytest

from optpolined.codegen.forms import ORIGINAL
from optpolined.config import GuestConfig, LearningConfig, PolicyConfig, QemuConfig
from optpolined.learning.strategies import StrategyName
from optpolined.service.adopt import adopt
from optpolined.service.job import Job
from optpolined.service.rules import Rules
from optpolined.telemetry.notify import Notifier
from tests.unit.service.test_governor import Guest
from tests.unit.service.test_rules import at


def make_job() -> Job:
    return Job(
        guest="vm1",
        config=GuestConfig(qemu=QemuConfig(qmp_socket=Path("/run/qmp"))),
        audit=False,
        force=False,
        duration_seconds=None,
        stop=threading.Event(),
        show=lambda _: None,
        rules=Rules(PolicyConfig()),
        reload=lambda _: None,
        notifier=Notifier(),
    )


def test_policy_and_learning_are_adopted_and_the_rest_waits_for_a_restart() -> None:
    guest, job = Guest(PolicyConfig()), make_job()
    before = job.config
    new = GuestConfig(
        qemu=QemuConfig(qmp_socket=Path("/elsewhere")),
        policy=PolicyConfig(bans=("beta",)),
        learning=LearningConfig(epoch_milliseconds=70),
    )
    adopt(job, guest.governor, guest.learner, new)
    assert job.config.policy == new.policy
    assert job.config.learning == new.learning
    assert job.config.qemu == before.qemu
    assert guest.wanted() == {at(0x100): ORIGINAL}


def test_another_strategy_is_refused_and_the_policy_is_adopted_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guest, job = Guest(PolicyConfig()), make_job()
    before = job.config
    new = before.model_copy(
        update={
            "policy": PolicyConfig(bans=("beta",)),
            "learning": LearningConfig(strategy=StrategyName.EPOCH),
        }
    )
    with caplog.at_level(logging.ERROR):
        adopt(job, guest.governor, guest.learner, new)
    assert job.config.learning == before.learning
    assert guest.wanted() == {at(0x100): ORIGINAL}
    (record,) = caplog.records
    assert record.getMessage() == "[learning] stays as it is: another strategy takes a restart"
    assert vars(record)["reason"] == "needs_restart"
