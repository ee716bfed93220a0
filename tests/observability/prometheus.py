"""Unpacks Debian's Prometheus into build/, and runs it on loopback for the time of a test.

It is not installed, because systemd would then start it as a service.
"""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from guest.image.archives import unpack, with_fresh_lists
from guest.image.paths import PACKAGES, locked
from tests.guest.harness import PATIENCE_SECONDS
from tests.observability.lens import CONFIGS, seen_through

__all__ = ("Prometheus", "Tools", "free_port", "provide")

BUILD = PACKAGES.parent / "prometheus"


@dataclass(frozen=True, slots=True)
class Tools:
    """The two programs of the package."""

    prometheus: Path
    promtool: Path

    def check(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """Run promtool; return its output.  Any exit code but 0 fails the test."""
        done = subprocess.run(
            [self.promtool, *arguments],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


def provide() -> Tools:
    """Return the programs; download them the first time (20 MB)."""
    tree = BUILD / "root"
    tools = Tools(tree / "usr/bin/prometheus", tree / "usr/bin/promtool")
    with locked(BUILD):
        if not (BUILD / "unpacked").exists():
            with_fresh_lists(lambda: unpack(("prometheus",), tree, archives=BUILD / "archives"))
            (BUILD / "unpacked").touch()
    return tools


def free_port() -> int:
    """Return a free port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Prometheus:
    """Run a server that scrapes each guest every second, with our rules, shortened by the lens.

    :param targets: the metrics ports, by the name of the guest.
    """

    def __init__(self, tools: Tools, directory: Path, targets: Mapping[str, int]) -> None:
        self._tools = tools
        self._directory = directory
        self._targets = targets
        self._address = f"127.0.0.1:{free_port()}"
        self._began = time.time()
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        config = self._directory / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._config()), encoding="utf-8")
        self._tools.check("check", "config", config)
        with (self._directory / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", self._tools.prometheus),
                    f"--config.file={config}",
                    f"--storage.tsdb.path={self._directory / 'data'}",
                    f"--web.listen-address={self._address}",
                ],
                stdout=log,
                stderr=log,
            )
        self.wait("is ready", lambda: self._fetch("/-/ready") is not None)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _config(self) -> dict[str, Any]:
        """Write our example with the targets of this test and a scrape each second."""
        config: dict[str, Any] = yaml.safe_load((CONFIGS / "scrape.yml").read_text("utf-8"))
        config["global"] = {"evaluation_interval": "1s"}
        config["rule_files"] = [
            str(seen_through(CONFIGS / Path(name).name, self._directory))
            for name in config["rule_files"]
        ]
        (job,) = config["scrape_configs"]
        job |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
        job["static_configs"] = [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"guest": guest}}
            for guest, port in self._targets.items()
        ]
        return config

    def instant(self, expr: str) -> list[dict[str, Any]]:
        """Return what ``expr`` gives now."""
        found = self._api("query", query=expr)["result"]
        assert isinstance(found, list)
        return found

    def since_start(self, expr: str) -> list[dict[str, Any]]:
        """Return what ``expr`` gave at each second since the server was started."""
        now = time.time()
        found = self._api("query_range", query=expr, start=self._began, end=now, step=1)["result"]
        assert isinstance(found, list)
        return found

    def label_values(self, label: str, selector: str) -> list[str]:
        """Return the values of a label, as Grafana's ``label_values`` does."""
        found = self._api(f"label/{label}/values", **{"match[]": selector})
        assert isinstance(found, list)
        return found

    def firing(self, alert: str) -> dict[str, Any] | None:
        """Return labels and annotations of an alert that fires; ``None`` if it does not."""
        for found in self._api("alerts")["alerts"]:
            if found["labels"]["alertname"] == alert and found["state"] == "firing":
                return dict(found)
        return None

    def wait_fires(self, alert: str, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Wait until an alert fires; return its labels and annotations."""
        found: dict[str, Any] | None = None

        def fires() -> bool:
            nonlocal found
            found = self.firing(alert)
            return found is not None

        self.wait(f"fires {alert}", fires, seconds)
        assert found is not None
        return found

    def wait_gives(self, expr: str) -> None:
        """Wait until ``expr`` gives a result."""
        self.wait(f"gives {expr}", lambda: bool(self.instant(expr)))

    def wait(self, what: str, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._process.poll() is None, self._log()
            assert time.monotonic() < deadline, f"Prometheus never {what}"
            time.sleep(0.2)

    def _log(self) -> str:
        return (self._directory / "prometheus.log").read_text("utf-8", "replace")[-3000:]

    def _api(self, path: str, **parameters: object) -> Any:
        answer = self._fetch(f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        assert answer is not None, f"{path} {parameters}: no answer"
        told = json.loads(answer)
        assert told["status"] == "success", told
        return told["data"]

    def _fetch(self, path: str) -> bytes | None:
        """Return the server's answer; ``None`` if it does not answer, or with another code."""
        try:
            with urllib.request.urlopen(f"http://{self._address}{path}", timeout=10) as answer:
                body: bytes = answer.read()
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise AssertionError(f"{path}: {error.read().decode()}") from error
            return None
        except urllib.error.URLError:
            return None
        return body
