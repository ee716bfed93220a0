"""The daemon's unix socket: sends the status, and takes requests.

- A client that sends nothing receives the status as one JSON object, then EOF.  It receives them at
  once where it closes its sending side, otherwise after half a second.
- A client that sends lines receives an answer to each (api/requests.py).  A line has at most 16 KiB
  and must be complete within five seconds.  After a line that is not, the client receives one
  answer, then EOF.

The socket has mode 0600, because a client may do whatever the daemon may.
"""

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from optpolined.api.errors import BadRequestError
from optpolined.api.request_queue import RequestQueue
from optpolined.api.requests import Answer, parse_request
from optpolined.api.status import STATUS, Status

__all__ = ("serve_status", "status_socket")

_LINE_MAX = 16 << 10
_PATIENCE_SECONDS = 5.0
_SILENCE_SECONDS = 0.5
_HANG_UP_SECONDS = 0.1
"""The time between two checks whether a client that waits for its answer has hung up."""

_CLIENTS_MAX = 8
"""Further clients wait in the listener's queue."""


def status_socket(runtime_directory: Path, guest: str) -> Path:
    """Return the path of the socket of ``guest``."""
    return runtime_directory / f"{guest}.status"


@contextmanager
def serve_status(
    path: Path, status: Callable[[], Status], requests: RequestQueue
) -> Iterator[None]:
    """Send ``status`` and take ``requests`` at ``path`` until the block ends.

    The socket replaces one that a dead daemon has left.  At the end ``requests`` is closed.

    :raise OSError: the socket cannot be made.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        try:
            path.chmod(0o600)
            listener.listen()
            server = _Server(listener, status, requests)
            try:
                yield
            finally:
                requests.close()
                server.end()
        finally:
            path.unlink(missing_ok=True)


class _Server:
    """A thread that accepts, and one for each client."""

    def __init__(
        self, listener: socket.socket, status: Callable[[], Status], requests: RequestQueue
    ) -> None:
        self._listener = listener
        self._status = status
        self._requests = requests
        self._places = threading.BoundedSemaphore(_CLIENTS_MAX)
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._ending = False
        self._thread = threading.Thread(target=self._accept, name="status", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop reading from all clients and wait for their threads; due answers are sent."""
        with self._lock:
            self._ending = True
            threads = list(self._clients.values())
            for client in self._clients:
                with suppress(OSError):  # it has hung up
                    client.shutdown(socket.SHUT_RD)
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        for thread in (*threads, self._thread):
            thread.join()

    def _accept(self) -> None:
        while True:
            self._places.acquire()
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # shut down
            thread = threading.Thread(
                target=self._serve, args=(client,), name="status client", daemon=True
            )
            with self._lock:
                if self._ending:
                    client.close()
                    return
                self._clients[client] = thread
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, suppress(OSError):  # the client has hung up
                self._serve_client(client)
        finally:
            with self._lock:
                self._clients.pop(client)
            self._places.release()

    def _serve_client(self, client: socket.socket) -> None:
        lines = _Lines(client)
        if not lines.begin(_SILENCE_SECONDS):
            _send(client, STATUS.dump_json(self._status()))
            return
        while True:
            try:
                line = lines.next()
            except BadRequestError as error:
                _send_answer(client, _refusal(error))
                return
            if not line:
                return
            answer = self._answer(client, line)
            if answer is None:
                return
            _send_answer(client, answer)

    def _answer(self, client: socket.socket, line: bytes) -> Answer | None:
        """Return the answer to one line; ``None`` where the client hung up before it came."""
        try:
            pending = self._requests.put(parse_request(line))
        except BadRequestError as error:
            return _refusal(error)
        # poll() says nothing of a half-closed connection: such a client waits for its answer.
        hung_up = select.poll()
        hung_up.register(client, 0)
        while (answer := pending.wait(_HANG_UP_SECONDS)) is None:
            if hung_up.poll(0):
                self._requests.withdraw(pending)
                return None
        return answer


class _Lines:
    """Splits what a client sends into lines."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._data = bytearray()

    def begin(self, seconds: float) -> bool:
        """Return whether the client sends anything within ``seconds``."""
        self._client.settimeout(seconds)
        try:
            self._data += self._client.recv(_LINE_MAX)
        except TimeoutError:
            return False
        return bool(self._data)

    def next(self) -> bytes:
        """Return the next line without its newline; empty at EOF.

        :raise BadRequestError: the line is too long, or its newline does not come in time.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (end := self._data.find(b"\n")) < 0:
            if len(self._data) >= _LINE_MAX:
                break
            piece = self._receive(deadline)
            if not piece and self._data:
                raise BadRequestError("not a request: the line has no newline")
            if not piece:
                return b""
            self._data += piece
        if not 0 <= end <= _LINE_MAX:
            raise BadRequestError(f"not a request: a line has at most {_LINE_MAX} bytes")
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        return line or b" "

    def _receive(self, deadline: float) -> bytes:
        """Return more bytes; empty at EOF, or where none come in time."""
        self._client.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            return self._client.recv(_LINE_MAX)
        except TimeoutError:
            return b""


def _refusal(error: BadRequestError) -> Answer:
    return Answer(outcome="refused", says=str(error))


def _send_answer(client: socket.socket, answer: Answer) -> None:
    _send(client, answer.model_dump_json(exclude_defaults=True).encode())


def _send(client: socket.socket, data: bytes) -> None:
    client.settimeout(_PATIENCE_SECONDS)
    client.sendall(data + b"\n")
