"""The last hour: a moment in ten seconds."""

from optpolined.api.status import DaemonPhase, Status
from optpolined.telemetry.history import HISTORY, INTERVAL_SECONDS, History


def test_a_moment_is_kept_in_each_interval_and_an_hour_in_all() -> None:
    history = History()
    status = Status("vm1", DaemonPhase.RUNNING, coverage=0.5)
    for second in range(5000):
        history.add(status, 1e9 + second)
    moments = history.samples()
    assert len(moments) == 360
    assert moments[-1].at - moments[-2].at == INTERVAL_SECONDS
    assert (moments[0].phase, moments[0].coverage) == ("running", 0.5)
    assert HISTORY.validate_json(HISTORY.dump_json(moments)) == list(moments)


def test_a_clock_that_goes_back_does_not_silence_it() -> None:
    history = History()
    history.add(Status("vm1"), 1e9)
    history.add(Status("vm1"), 1e9 - 3600)
    assert len(history.samples()) == 2
