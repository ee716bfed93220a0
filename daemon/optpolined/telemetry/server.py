"""The daemon's unix socket: tells the status, and takes requests.

- Who sends nothing gets the status as one JSON object, and the end: at once where he closes his
  sending side, else after half a second.
- Who sends lines gets an answer to each (requests.py).  A line has at most 16 KiB, and comes
  within five seconds; what breaks this is answered by one line, and the end.

The socket has mode 0600: who may open it may do what the daemon may.
"""

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from optpolined.api.errors import BadRequestError, NoAnswerError
from optpolined.api.requests import Answer, Request, Requests, parse_request
from optpolined.api.status import STATUS, Status

__all__ = ("ask", "read_status", "serve_status", "status_socket")

_STATUS_MAX = 16 << 20
_ANSWER_MAX = 16 << 20
_LINE_MAX = 16 << 10
_PATIENCE_SECONDS = 5.0
_SILENCE_SECONDS = 0.5
_HANG_UP_SECONDS = 0.1
"""Between two looks at whether a client that waits for its answer is still there."""

_CLIENTS_MAX = 8
"""More wait in the listener's queue."""


def status_socket(runtime_directory: Path, guest: str) -> Path:
    """Where the daemon of ``guest`` tells its status, and takes requests."""
    return runtime_directory / f"{guest}.status"


@contextmanager
def serve_status(path: Path, status: Callable[[], Status], requests: Requests) -> Iterator[None]:
    """Serve ``status`` and take ``requests`` at ``path`` until the block ends.

    The socket has mode 0600, and replaces a dead one.  At the end ``requests`` is closed.

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


def read_status(path: Path) -> Status:
    """What a daemon tells at ``path``.

    :raise NoAnswerError: nobody listens there, or it may not be opened, or what answers is no
        daemon.
    """
    data = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_PATIENCE_SECONDS)
            client.connect(str(path))
            client.shutdown(socket.SHUT_WR)
            while len(data) <= _STATUS_MAX and (piece := client.recv(1 << 16)):
                data += piece
        return STATUS.validate_json(data)
    except OSError as error:
        raise _no_answer(path, error) from error
    except ValidationError as error:
        raise NoAnswerError(f"{path}: what answers is no daemon of this version") from error


def ask(path: Path, request: Request, *, timeout_seconds: float = 60) -> Answer:
    """Ask the daemon at ``path``, and wait until it is done.

    The daemon takes requests between two epochs; one that nobody waits for any more is dropped.

    :raise NoAnswerError: nobody listens there, or it may not be opened, or there is no answer in
        time, or what answers is no daemon.
    """
    said = bytearray()
    deadline = time.monotonic() + timeout_seconds
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(timeout_seconds)
            client.connect(str(path))
            client.sendall(request.model_dump_json().encode() + b"\n")
            while b"\n" not in said and len(said) < _ANSWER_MAX:
                client.settimeout(max(0.001, deadline - time.monotonic()))
                piece = client.recv(1 << 12)
                if not piece:
                    break
                said += piece
    except TimeoutError as error:
        raise NoAnswerError(
            f"{path}: no answer in {timeout_seconds:g} s: the daemon is busy, or hangs; "
            "`optpolinectl status` shows which"
        ) from error
    except OSError as error:
        raise _no_answer(path, error) from error
    try:
        return Answer.model_validate_json(said.partition(b"\n")[0])
    except ValidationError as error:
        raise NoAnswerError(f"{path}: what answers is no daemon of this version") from error


def _no_answer(path: Path, error: OSError) -> NoAnswerError:
    says = f"{path}: {error.strerror or error}"
    if isinstance(error, PermissionError):
        return NoAnswerError(f"{says}: run this as root, or as the daemon's user")
    return NoAnswerError(f"{says}; is optpolined running for this guest?")


class _Server:
    """A thread that accepts, and one for each client."""

    def __init__(
        self, listener: socket.socket, status: Callable[[], Status], requests: Requests
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
        """End all conversations and wait for them; what is due is still told."""
        with self._lock:
            self._ending = True
            threads = list(self._clients.values())
            for client in self._clients:
                with suppress(OSError):  # gone meanwhile
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
            with client, suppress(OSError):  # a client that went away is no concern of ours
                self._converse(client)
        finally:
            with self._lock:
                self._clients.pop(client)
            self._places.release()

    def _converse(self, client: socket.socket) -> None:
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
        """The answer to one line; ``None`` where the client has gone before it came."""
        try:
            asked = self._requests.put(parse_request(line))
        except BadRequestError as error:
            return _refusal(error)
        # Not told of a half-closed connection: its other half waits for the answer.
        hung_up = select.poll()
        hung_up.register(client, 0)
        while (answer := asked.wait(_HANG_UP_SECONDS)) is None:
            if hung_up.poll(0):
                self._requests.withdraw(asked)
                return None
        return answer


class _Lines:
    """Cuts what a client sends into lines."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._data = bytearray()

    def begin(self, seconds: float) -> bool:
        """Whether anything comes within so long."""
        self._client.settimeout(seconds)
        try:
            self._data += self._client.recv(_LINE_MAX)
        except TimeoutError:
            return False
        return bool(self._data)

    def next(self) -> bytes:
        """The next line, without its end; empty where no more is sent.

        :raise BadRequestError: it is too long, or its end does not come.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (end := self._data.find(b"\n")) < 0:
            if len(self._data) >= _LINE_MAX:
                break
            piece = self._receive(deadline)
            if not piece and self._data:
                raise BadRequestError("not a request: the line has no end")
            if not piece:
                return b""
            self._data += piece
        if not 0 <= end <= _LINE_MAX:
            raise BadRequestError(f"not a request: a line has at most {_LINE_MAX} bytes")
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        return line or b" "

    def _receive(self, deadline: float) -> bytes:
        """More bytes; empty where there are none, or none in time."""
        self._client.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            return self._client.recv(_LINE_MAX)
        except TimeoutError:
            return b""


def _refusal(error: BadRequestError) -> Answer:
    return Answer(outcome="refused", says=str(error))


def _send_answer(client: socket.socket, answer: Answer) -> None:
    _send(client, answer.model_dump_json(exclude_defaults=True).encode())


def _send(client: socket.socket, told: bytes) -> None:
    client.settimeout(_PATIENCE_SECONDS)
    client.sendall(told + b"\n")
