"""The way of a request from a server's thread to the reconcile loop, and of its answer back.

The threads of the servers put requests here.  The loop takes them between two epochs and answers
them, because nothing but the loop's thread touches the guest.  A request whose client has hung up
before its turn is not carried out.
"""

import threading
from collections import deque

from optpolined.api.requests import Answer, Request

__all__ = ("PendingRequest", "RequestQueue")


class PendingRequest:
    """One request that waits for its answer."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._answered = threading.Event()
        self._answer: Answer

    def answer(self, answer: Answer) -> None:
        """Answer it; a second answer is dropped."""
        if not self._answered.is_set():
            self._answer = answer
            self._answered.set()

    def wait(self, seconds: float) -> Answer | None:
        """Wait for the answer; return ``None`` after ``seconds`` without one."""
        return self._answer if self._answered.wait(seconds) else None


class RequestQueue:
    """The requests that wait for the loop, oldest first; as many as the servers have clients."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[PendingRequest] = deque()
        self._begun: PendingRequest | None = None
        self._is_open = True

    def put(self, request: Request) -> PendingRequest:
        """Queue a request; after :meth:`close` it is refused at once."""
        pending = PendingRequest(request)
        with self._lock:
            if self._is_open:
                self._waiting.append(pending)
            else:
                pending.answer(_LEAVING)
        return pending

    def withdraw(self, pending: PendingRequest) -> None:
        """Drop a request whose client has hung up, unless the loop has begun with it."""
        with self._lock:
            if pending in self._waiting:
                self._waiting.remove(pending)

    def take(self) -> PendingRequest | None:
        """Begin with the oldest request; the caller answers it before it takes another.

        :return: ``None`` where no request waits.
        """
        with self._lock:
            self._begun = self._waiting.popleft() if self._waiting else None
            return self._begun

    def open(self) -> None:
        """Queue requests again after :meth:`close`: another loop has begun."""
        with self._lock:
            self._is_open = True

    def close(self) -> None:
        """Answer the requests that wait, and all that come later: the loop has ended."""
        with self._lock:
            self._is_open = False
            if self._begun is not None:
                self._begun.answer(_FAILED)
            while self._waiting:
                self._waiting.popleft().answer(_LEAVING)


_LEAVING = Answer(outcome="refused", says="the daemon is not attached to the guest now")
_FAILED = Answer(
    outcome="failed", says="the daemon had to leave the guest meanwhile; its log says why"
)
