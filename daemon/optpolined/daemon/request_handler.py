"""Carries out the requests that wait, between two epochs of the reconcile loop."""

from collections.abc import Callable
from dataclasses import dataclass

from optpolined.api.request_queue import RequestQueue
from optpolined.api.requests import (
    Answer,
    Explain,
    ListSites,
    ListStaticCalls,
    Question,
    ReleaseStub,
    Request,
    SetStaticCall,
    TakeStub,
)
from optpolined.api.sites import StaticCallRow
from optpolined.api.status import DaemonPhase
from optpolined.control.names import NameRefusedError
from optpolined.control.operator import Operator, OperatorCommand
from optpolined.kernel.errors import TranslationError
from optpolined.patching.static_calls import StaticCallError, StaticCalls
from optpolined.qemu.errors import QemuError
from optpolined.session.stub_handover import StubHandover
from optpolined.views.site_table import SiteTable

__all__ = ("RequestHandler",)

_AT_ONCE = 16
"""A client that asks without pause must not delay the next epoch."""


@dataclass(frozen=True, slots=True)
class RequestHandler:
    """Answers requests about one attached guest."""

    stub_handover: StubHandover
    static_calls: StaticCalls
    operator: Operator
    table: SiteTable

    def answer_waiting(
        self,
        requests: RequestQueue,
        pause: Callable[[], DaemonPhase | None],
        publish: Callable[[], None],
    ) -> None:
        """Answer the oldest requests, as many as one look allows.

        :param pause: Returns the phase in which nothing may be changed; ``None`` outside of one.
        :param publish: Renews the status.  It is called before a command is answered, so that a
            client which reads the status next finds the change in it.
        :raise KernelError: as :meth:`answer`.
        """
        for _ in range(_AT_ONCE):
            pending = requests.take()
            if pending is None:
                return
            answer = self.answer(pending.request, pause())
            if not isinstance(pending.request, Question):
                publish()
            pending.answer(answer)

    def answer(self, request: Request, pause: DaemonPhase | None) -> Answer:
        """Carry out one request.

        :param pause: The phase in which nothing may be changed; ``None`` outside of one.
        :raise KernelError: the guest is not what it was at attach.
        """
        try:
            match request:
                case ReleaseStub():
                    return self.stub_handover.release()
                case TakeStub():
                    return self.stub_handover.take()
                case SetStaticCall():
                    return self._set(request, pause)
                case ListSites() | Explain() | ListStaticCalls():
                    return self._answer_question(request, pause)
                case _:
                    return self._carry_out(request)
        except QemuError as error:
            return Answer(outcome="failed", says=str(error))

    def _carry_out(self, command: OperatorCommand) -> Answer:
        """Change the overrides; the next epoch that may change sites applies them."""
        try:
            return Answer(outcome="done", says=self.operator.carry_out(command))
        except NameRefusedError as error:
            return Answer(outcome="refused", says=str(error))

    def _answer_question(self, question: Question, pause: DaemonPhase | None) -> Answer:
        if pause is DaemonPhase.MIGRATING and not isinstance(question, ListSites):
            return _not_now(pause)  # even to read may take stops
        match question:
            case ListSites():
                rows = self.table.rows(question)
                more = f"; {question.top} shown" if len(rows) > question.top else ""
                says = f"{len(rows)} sites{more}"
                return Answer(outcome="done", says=says, sites=tuple(rows[: question.top]))
            case Explain():
                return self._explain(question)
            case ListStaticCalls():
                return self._list()

    def _explain(self, question: Explain) -> Answer:
        try:
            told = self.table.explain(question.site)
        except NameRefusedError as error:
            return Answer(outcome="refused", says=str(error))
        except TranslationError as error:
            return Answer(outcome="failed", says=f"{question.site} cannot be read: {error}")
        says = f"{told.row.site} is {told.row.state}: {told.row.reason}"
        return Answer(outcome="done", says=says, explanation=told)

    def _list(self) -> Answer:
        try:
            rows = tuple(
                StaticCallRow(key.key, key.module, key.target or None, key.built or None, key.sites)
                for key in self.static_calls.list()
            )
        except StaticCallError as error:
            return Answer(outcome="failed", says=str(error))
        return Answer(outcome="done", says=f"{len(rows)} static calls", static_calls=rows)

    def _set(self, request: SetStaticCall, pause: DaemonPhase | None) -> Answer:
        if pause is not None:
            return _not_now(pause)
        try:
            changed = self.static_calls.set(request.key, request.function)
        except StaticCallError as error:
            return Answer(outcome="refused", says=str(error))
        goes = request.function or "nothing"
        says = f"{request.key} goes to {goes}: {changed} places changed"
        return Answer(outcome="done", says=says)


def _not_now(pause: DaemonPhase) -> Answer:
    return Answer(outcome="refused", says=f"not now: the phase is {pause.value!r}; ask again")
