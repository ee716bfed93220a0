"""What a run says of a guest that it has lost."""

import threading
from pathlib import Path

import pytest

from optpolined.api.status import Status
from optpolined.config import GuestConfig, QemuConfig
from optpolined.daemon import serve as module
from optpolined.daemon.job import Job
from optpolined.daemon.serve import Options, serve


def test_a_guest_that_is_lost_and_not_attached_to_again_is_not_called_identical(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """tests/guest/test_neighbours.py has a real guest that is lost, and found again."""
    stop = threading.Event()
    stop.set()
    shown: list[Status] = []
    attached: list[Job] = []
    monkeypatch.setattr(module, "_attach", attached.append)
    config = GuestConfig(qemu=QemuConfig(qmp_socket=tmp_path / "qmp"))
    report = serve("vm1", config, Options(), stop, shown.append)
    assert len(attached) == 2, "once more, to put back what it may hold"
    assert report.lost
    assert not report.text_identical_after_detach
    assert any("not compared: the guest was reset or replaced" in line for line in report.lines())
