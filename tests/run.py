"""Runs all tests, the ones that boot guests beside the others: ``make test``.

    python -m tests.run

Guest tests mostly wait and the others compute: side by side they take half of the time.  Two
processes run the guest tests, a file each, because the tests of a file may share a guest.  Their
output goes to build/test-guest.log, and is shown as soon as the others have ended.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

_LOG = Path("build/test-guest.log")
_GUESTS = (
    *("--numprocesses=2", "--dist=loadfile", "--verbose", "--durations=10"),
    *("tests/guest", "tests/observability/test_prometheus_live.py"),
)
_OTHERS = (
    *("-m", "not long"),
    *("tests/unit", "tests/browser", "tests/model", "tests/hostile"),
    *("tests/observability/test_prometheus_rules.py", "tests/systemd"),
)
_LOOK_SECONDS = 0.2
_CLEAN_UP_SECONDS = 120


def main() -> int:
    """Run the tests; return the first exit code that is not 0."""
    # A CI that gives up sends SIGTERM: the guests must not outlive it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _LOG.parent.mkdir(exist_ok=True)
    pytest = (sys.executable, "-m", "pytest")
    with _LOG.open("wb") as log:
        guests = subprocess.Popen((*pytest, *_GUESTS), stdout=log, stderr=log)
    try:
        others = subprocess.run((*pytest, *_OTHERS), check=False).returncode
        _show(guests)
    except KeyboardInterrupt:
        return 130
    finally:
        _end(guests)
    if guests.returncode:
        sys.stdout.write(f"test: the guest tests failed; {_LOG} has their output\n")
    return others or guests.returncode


def _end(guests: subprocess.Popen[bytes]) -> None:
    """Have the guest tests clean up, where they have not ended."""
    if guests.poll() is None:
        guests.send_signal(signal.SIGINT)
        try:
            guests.wait(_CLEAN_UP_SECONDS)
        except subprocess.TimeoutExpired:
            guests.kill()
            guests.wait()


def _show(guests: subprocess.Popen[bytes]) -> None:
    """Show the output of the guest tests until they end."""
    with _LOG.open("rb") as log:
        ended = False
        while not ended:
            ended = guests.poll() is not None
            sys.stdout.buffer.write(log.read())
            sys.stdout.flush()
            time.sleep(0 if ended else _LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
