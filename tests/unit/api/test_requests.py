"""Requests over the status socket, by clients that follow the rules and by others."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.api.errors import BadRequestError, NoAnswerError
from optpolined.api.request_queue import RequestQueue
from optpolined.api.requests import (
    Answer,
    ReleaseStub,
    Request,
    TakeStub,
    parse_request,
)
from optpolined.api.status import Status
from optpolined.telemetry.server import serve_status, status_socket
from optpolined.telemetry.socket_client import ask, read_status

PATIENCE_SECONDS = 20
DONE = Answer(outcome="done", says="so it is")
TAKE = b'{"request": "take-stub"}\n'


@contextmanager
def loop(requests: RequestQueue, answer: Callable[[Request], Answer]) -> Iterator[None]:
    """A reconcile loop that does nothing else."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.01):
            while (asked := requests.take()) is not None:
                asked.answer(answer(asked.request))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def requests() -> RequestQueue:
    return RequestQueue()


@pytest.fixture
def path(tmp_path: Path, requests: RequestQueue) -> Iterator[Path]:
    """A served socket, without a loop that carries out requests."""
    path = status_socket(tmp_path, "vm1")
    with serve_status(path, lambda: Status("vm1"), requests):
        yield path


@contextmanager
def client(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_SECONDS)
        connection.connect(str(path))
        yield connection


def told(connection: socket.socket, count: int = 1) -> list[dict[str, str]]:
    """Receive ``count`` lines."""
    data = b""
    while data.count(b"\n") < count:
        piece = connection.recv(4096)
        assert piece, data
        data += piece
    return [json.loads(line) for line in data.splitlines()]


def has_ended(connection: socket.socket) -> bool:
    with suppress(ConnectionResetError):  # what was sent last was not read
        return connection.recv(1) == b""
    return True


def waiting(requests: RequestQueue) -> int:
    return len(requests._waiting)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_request_is_carried_out_by_the_loop_and_answered(
    path: Path, requests: RequestQueue
) -> None:
    seen: list[Request] = []

    def answer(request: Request) -> Answer:
        seen.append(request)
        return DONE

    with loop(requests, answer):
        assert ask(path, ReleaseStub()) == DONE
        assert ask(path, TakeStub()) == DONE
    assert seen == [ReleaseStub(), TakeStub()]


def test_the_status_is_told_while_a_request_waits(path: Path, requests: RequestQueue) -> None:
    with client(path) as connection:
        connection.sendall(TAKE)
        until(lambda: waiting(requests) == 1)
        assert read_status(path).guest == "vm1"
        with loop(requests, lambda _: DONE):
            assert told(connection) == [{"outcome": "done", "says": "so it is"}]


def test_who_sends_nothing_and_waits_gets_the_status_too(path: Path) -> None:
    with client(path) as connection:
        assert json.loads(connection.makefile().read())["guest"] == "vm1"


def test_requests_that_come_in_pieces_or_together_are_answered_in_order(
    path: Path, requests: RequestQueue
) -> None:
    with (
        loop(requests, lambda request: Answer(outcome="done", says=request.request)),
        client(path) as connection,
    ):
        for byte in TAKE:
            connection.sendall(bytes([byte]))
        assert told(connection)[0]["says"] == "take-stub"
        connection.sendall(TAKE + b'{"request": "release-stub"}\n{"no": 1}\n' + TAKE)
        answers = told(connection, 4)
        assert [answer["outcome"] for answer in answers] == ["done", "done", "refused", "done"]
        assert [answers[0]["says"], answers[1]["says"]] == ["take-stub", "release-stub"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"garbage",
        b"\xff\x00",
        b"[" * 10_000,
        b"{}",
        b"null",
        b'{"request": "reboot\x1b[2J\\u001b\\n"}',
        b'{"request": "take-stub", "guest": "vm2"}',
        b'{"request": ["take-stub"]}',
    ],
)
def test_a_bad_request_gets_one_line_and_the_next_is_taken(
    path: Path, requests: RequestQueue, line: bytes
) -> None:
    with loop(requests, lambda _: DONE), client(path) as connection:
        connection.sendall(line + b"\n")
        (answer,) = told(connection)
        assert answer["outcome"] == "refused"
        assert answer["says"].startswith("not a request: ")
        assert answer["says"].isprintable()
        assert len(answer["says"]) <= 200
        connection.sendall(TAKE)
        assert told(connection)[0]["outcome"] == "done"


@given(st.binary(max_size=200))
def test_bytes_at_random_are_no_request(line: bytes) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_request(line)
    assert str(caught.value).isprintable()


def test_a_request_that_is_too_long_is_refused_and_ends_it(path: Path) -> None:
    with client(path) as connection:
        connection.sendall(b'{"request": "' + b"x" * 40_000)
        (answer,) = told(connection)
        assert "at most 16384 bytes" in answer["says"]
        assert has_ended(connection)


def test_half_a_request_is_not_carried_out(path: Path, requests: RequestQueue) -> None:
    with client(path) as connection:
        connection.sendall(TAKE.strip())
        connection.shutdown(socket.SHUT_WR)
        assert "no newline" in told(connection)[0]["says"]
        assert has_ended(connection)
    assert waiting(requests) == 0


def test_a_client_that_is_slow_to_end_its_line_does_not_wait_for_ever(path: Path) -> None:
    with client(path) as connection:
        connection.sendall(b"{")
        assert "no newline" in told(connection)[0]["says"]


def test_a_client_that_closes_its_sending_side_gets_its_answer(
    path: Path, requests: RequestQueue
) -> None:
    with client(path) as connection:
        connection.sendall(TAKE)
        connection.shutdown(socket.SHUT_WR)
        until(lambda: waiting(requests) == 1)
        with loop(requests, lambda _: DONE):
            assert told(connection)[0]["outcome"] == "done"
            assert has_ended(connection)


def test_a_request_whose_client_has_hung_up_is_dropped(path: Path, requests: RequestQueue) -> None:
    with client(path) as connection:
        connection.sendall(TAKE)
        until(lambda: waiting(requests) == 1)
    until(lambda: waiting(requests) == 0)
    assert requests.take() is None


def test_a_client_that_waited_long_enough_says_so_and_withdraws(
    path: Path, requests: RequestQueue
) -> None:
    with pytest.raises(NoAnswerError, match="no answer in"):
        ask(path, TakeStub(), timeout_seconds=0.3)
    until(lambda: waiting(requests) == 0)


def test_one_that_the_loop_has_begun_with_is_carried_out_though_its_client_has_gone(
    path: Path, requests: RequestQueue
) -> None:
    with client(path) as connection:
        connection.sendall(TAKE)
        until(lambda: waiting(requests) == 1)
        asked = requests.take()
    assert asked is not None
    asked.answer(DONE)
    assert asked.wait(0) == DONE


def test_many_clients_wait_for_a_place(path: Path, requests: RequestQueue) -> None:
    def one(number: int) -> None:
        answers[number] = ask(path, TakeStub())

    answers: dict[int, Answer] = {}
    threads = [threading.Thread(target=one, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    until(lambda: waiting(requests) == 8)
    time.sleep(0.2)
    assert waiting(requests) == 8, "bounded"
    with loop(requests, lambda _: DONE):
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
    assert answers == dict.fromkeys(range(20), DONE)


def test_at_the_end_of_the_daemon_everybody_is_told(tmp_path: Path) -> None:
    path, requests = tmp_path / "status", RequestQueue()
    with client_of_ending(path, requests, begin=False) as connection:
        assert told(connection)[0] == {
            "outcome": "refused",
            "says": "the daemon is not attached to the guest now",
        }
    with client_of_ending(path, requests := RequestQueue(), begin=True) as connection:
        assert told(connection)[0]["outcome"] == "failed"
    assert requests.put(TakeStub()).wait(0) == Answer(
        outcome="refused", says="the daemon is not attached to the guest now"
    )


@contextmanager
def client_of_ending(path: Path, requests: RequestQueue, *, begin: bool) -> Iterator[socket.socket]:
    """A client whose request the server's end finds waiting, or begun."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_SECONDS)
        with serve_status(path, lambda: Status("vm1"), requests):
            connection.connect(str(path))
            connection.sendall(TAKE)
            until(lambda: waiting(requests) == 1)
            if begin:
                assert requests.take() is not None
        yield connection


def test_an_idle_client_does_not_keep_the_daemon_from_its_end(tmp_path: Path) -> None:
    path, requests = tmp_path / "status", RequestQueue()
    with socket.socket(socket.AF_UNIX) as connection:
        with (
            serve_status(path, lambda: Status("vm1"), requests),
            loop(requests, lambda _: DONE),
        ):
            connection.connect(str(path))
            connection.settimeout(PATIENCE_SECONDS)
            connection.sendall(TAKE)
            assert told(connection)[0]["outcome"] == "done"
        assert has_ended(connection)


def test_a_reply_of_another_program_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "other"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b'{"guest": "vm1"}\n')

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(NoAnswerError, match="not one of optpolined of this version"):
            ask(path, TakeStub())
        thread.join()
