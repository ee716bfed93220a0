"""The last hour: a moment in ten seconds."""

from optpolined.api.status import DaemonPhase, Status
from optpolined.telemetry.history import HISTORY, INTERVAL_SECONDS, History


def test_one_sample_is_kept_in_each_interval_for_an_hour() -> None:
    history = History()
    status = Status("vm1", DaemonPhase.RUNNING, coverage=0.5)
    for second in range(5000):
        history.add(status, 1e9 + second)
    samples = history.samples()
    assert len(samples) == 360
    assert samples[-1].at - samples[-2].at == INTERVAL_SECONDS
    assert (samples[0].phase, samples[0].coverage) == ("running", 0.5)
    assert HISTORY.validate_json(HISTORY.dump_json(samples)) == list(samples)


def test_a_clock_that_is_set_back_does_not_stop_the_samples() -> None:
    history = History()
    history.add(Status("vm1"), 1e9)
    history.add(Status("vm1"), 1e9 - 3600)
    assert len(history.samples()) == 2
