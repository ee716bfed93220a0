"""The status on a unix socket: connect, read JSON until the end, done."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from optpolined.telemetry.status import Status

__all__ = ("read_status", "serve_status", "status_socket")

_STATUS_MAX = 16 << 20
_PATIENCE_SECONDS = 5.0


def status_socket(runtime_directory: Path, guest: str) -> Path:
    """Where the daemon of ``guest`` tells its status."""
    return runtime_directory / f"{guest}.status"


@contextmanager
def serve_status(path: Path, status: Callable[[], Status]) -> Iterator[None]:
    """Serve ``status`` at ``path``, mode 0600, until the block ends; replaces a dead socket.

    :raise OSError: the socket cannot be made.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        try:
            path.chmod(0o600)
            listener.listen()
            thread = threading.Thread(
                target=_serve, args=(listener, status), name="status", daemon=True
            )
            thread.start()
            yield
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            thread.join()
        finally:
            path.unlink(missing_ok=True)


def read_status(path: Path) -> dict[str, object]:
    """What a daemon tells at ``path``.

    :raise OSError: nobody listens there, or it may not be opened.
    :raise ValueError: what answers is no daemon.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_PATIENCE_SECONDS)
        client.connect(str(path))
        data = bytearray()
        while piece := client.recv(1 << 16):
            data += piece
            if len(data) > _STATUS_MAX:
                raise ValueError(f"{path}: the answer has no end")
    status = json.loads(data)
    if not isinstance(status, dict):
        raise ValueError(f"{path}: the answer is no status")  # noqa: TRY004
    return status


def _serve(listener: socket.socket, status: Callable[[], Status]) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # shut down
        with client, suppress(OSError):  # a reader that went away is no concern of ours
            client.settimeout(_PATIENCE_SECONDS)
            now = status()
            told = asdict(now) | {"phase": now.phase.value}
            client.sendall(json.dumps(told).encode() + b"\n")
