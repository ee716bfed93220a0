"""Settings that are read again while the daemon works."""

import logging
import threading
from pathlib import Path
from typing import cast

import pytest

from optpolined.config import GuestConfig, LearningConfig, PolicyConfig, QemuConfig
from optpolined.learning.strategies import StrategyName
from optpolined.service.adopt import adopt
from optpolined.service.governor import Governor
from optpolined.service.job import Job
from optpolined.service.learner import Learner
from optpolined.service.recorder import Recorder
from optpolined.service.rules import Rules
from optpolined.service.session import Session
from optpolined.telemetry.notify import Notifier
from tests.unit.service.test_governor import Guest
