"""What is told and asked of a guest through all its attachments."""

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from optpolined.api.requests import Answer, ListSites
from optpolined.api.status import DaemonPhase, Status
from optpolined.config import GuestConfig, MetricsConfig, QemuConfig
from optpolined.daemon.endpoints import Endpoints
from optpolined.session.errors import AttachRefusedError
from optpolined.telemetry.server import status_socket
from optpolined.telemetry.socket_client import ask, read_status


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def config(directory: Path, port: int = 0) -> GuestConfig:
    return GuestConfig(
        qemu=QemuConfig(qmp_socket=directory / "qmp"),
        metrics=MetricsConfig(port=port),
        runtime_directory=directory,
    )


def fetch(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read(), "utf-8")


@contextmanager
def loop(endpoints: Endpoints) -> Iterator[None]:
    """A loop that answers."""
    end = threading.Event()

    def answer() -> None:
        while not end.wait(0.01):
            while (asked := endpoints.requests.take()) is not None:
                asked.answer(Answer(outcome="done", says="0 sites"))

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def test_nothing_is_served_before_it_is_open(tmp_path: Path) -> None:
    path = status_socket(tmp_path, "vm1")
    path.touch()  # another program's
    with Endpoints("vm1", config(tmp_path)):
        pass
    assert path.exists()


def test_status_questions_and_metrics_are_served_between_attachments(tmp_path: Path) -> None:
    port, path = free_port(), status_socket(tmp_path, "vm1")
    with Endpoints("vm1", config(tmp_path, port)) as endpoints:
        endpoints.open()
        endpoints.open()
        endpoints.publish(Status("vm1", DaemonPhase.RUNNING, pokes=7))
        assert read_status(path).phase is DaemonPhase.RUNNING
        assert 'optpolined_up{guest="vm1"} 1.0' in fetch(port, "/metrics")
        with loop(endpoints):
            assert ask(path, ListSites()).says == "0 sites"
            assert '"0 sites"' in fetch(port, "/api/sites")
        endpoints.requests.close()
        endpoints.publish(Status("vm1", trouble="the guest has no module", pokes=7))
        assert read_status(path).trouble == "the guest has no module"
        assert "not attached" in ask(path, ListSites()).says
        with pytest.raises(urllib.error.HTTPError):
            fetch(port, "/api/sites")
        assert 'optpolined_up{guest="vm1"} 0.0' in fetch(port, "/metrics")
        endpoints.requests.open()
        with loop(endpoints):
            assert ask(path, ListSites()).outcome == "done"
        assert len(endpoints.history.samples()) == 1
    assert not path.exists()
    with pytest.raises(OSError, match="refused"):
        fetch(port, "/metrics")


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken, Endpoints("vm1", config(tmp_path, free_port())) as endpoints:
        taken.bind(("127.0.0.1", endpoints._config.metrics.port))
        taken.listen()
        with pytest.raises(AttachRefusedError, match="in use"):
            endpoints.open()
    assert not status_socket(tmp_path, "vm1").exists()
