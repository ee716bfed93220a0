"""Other settings for a daemon at work, as after a SIGHUP."""

import logging

from optpolined.config import GuestConfig
from optpolined.service.governor import Governor
from optpolined.service.job import Job
from optpolined.service.learner import Learner

__all__ = ("adopt",)

_log = logging.getLogger(__name__)


def adopt(job: Job, governor: Governor, learner: Learner, config: GuestConfig) -> None:
    """Go by the policy and the learning settings of ``config`` from now on; nothing is detached.

    Where they cannot be had without a restart, learning goes on by the settings that it has.
    """
    governor.adopt(config.policy)
    refusal = learner.adopt(config.learning)
    if refusal:
        _log.error("[learning] stays as it is: %s", refusal, extra={"reason": "needs_restart"})
    learning = job.config.learning if refusal else config.learning
    job.config = job.config.model_copy(update={"policy": config.policy, "learning": learning})
    _log.info("settings are read again; pins and bans that were asked for meanwhile are forgotten")
