"""The JSON API: queries by GET, and their answers.

``/api/schema`` has the JSON Schema of each query and answer.  A query without an answer gets one
line of text and a status: 400 the query is wrong, 404 no site has this name, 409 not possible now,
502 the guest or QEMU failed, 503 the reconcile loop did not answer in time.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from typing import Annotated, Any, Generic, Literal, TypeVar
from urllib.parse import parse_qs

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from optpolined.api.errors import NotServedError, complaint
from optpolined.api.requests import Answer, Explain, ListSites, ListStaticCalls, Question
from optpolined.api.sites import Explanation, SiteRow, StaticCallRow
from optpolined.api.status import (
    EPOCH_BUCKETS_SECONDS,
    GRACE_BUCKETS_SECONDS,
    STATUS,
    STOP_BUCKETS_SECONDS,
    Status,
)
from optpolined.telemetry.history import HISTORY, Sample
from optpolined.telemetry.web.sources import Sources

__all__ = ("ASKING_MAX", "TOP_MAX", "Api")

ASKING_MAX = 4
"""The most clients that wait for the reconcile loop at a time.

The server has more threads, because it serves metrics and status even where the loop hangs.
"""
TOP_MAX = 1000
"""The most rows of one answer."""

_PARAMETERS_MAX = 32
_NAME_MAX = 512

_Name = Annotated[str, Field(min_length=1, max_length=_NAME_MAX)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class NoQuery(_Model):
    """A query without parameters."""


class SitesQuery(_Model):
    """Which sites, and how many."""

    pattern: _Name = "*"
    """A shell pattern over names of functions, or module:function."""
    state: Annotated[
        tuple[_Name, ...], BeforeValidator(lambda one: (one,) if isinstance(one, str) else one)
    ] = ()
    """Only sites in this state; the parameter may be repeated."""
    order: Literal["address", "calls", "misses"] = "address"
    """By rising address, or by falling calls or misses per second."""
    top: Annotated[int, Field(ge=1, le=TOP_MAX)] = 200


class ExplainQuery(_Model):
    """Which site."""

    site: _Name
    """As function+0x1f, module:function+0x1f, or its address."""


class Sites(_Model):
    """Sites and their states."""

    says: str
    """How many there are."""
    sites: tuple[SiteRow, ...]


class StaticCalls(_Model):
    """Static calls and their targets."""

    says: str
    static_calls: tuple[StaticCallRow, ...]


class Bounds(_Model):
    """The upper bounds in seconds of the buckets of a status; the last bucket has none."""

    stops: tuple[float, ...] = STOP_BUCKETS_SECONDS
    epochs: tuple[float, ...] = EPOCH_BUCKETS_SECONDS
    graces: tuple[float, ...] = GRACE_BUCKETS_SECONDS


QueryT = TypeVar("QueryT", bound=BaseModel)
AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[QueryT, AnswerT]):
    """One kind of query."""

    query: type[QueryT]
    answer: TypeAdapter[AnswerT]
    find: Callable[[QueryT], AnswerT]

    def reply(self, query: str) -> bytes:
        """Return the answer, in JSON.

        :param query: The part of the URL after the question mark.
        :raise NotServedError: the query has no answer.
        """
        return self.answer.dump_json(self.find(_parse(self.query, query)))

    def schema(self) -> dict[str, object]:
        """Return the schemas of the query and of the answer."""
        return {
            "query": self.query.model_json_schema(),
            "answer": self.answer.json_schema(mode="serialization"),
        }


class Api:
    """The endpoints over one daemon, by path."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._places = threading.BoundedSemaphore(ASKING_MAX)
        self.endpoints: Mapping[str, Endpoint[Any, Any]] = {
            "/api/status": Endpoint(NoQuery, STATUS, self._status),
            "/api/bounds": Endpoint(NoQuery, TypeAdapter(Bounds), self._bounds),
            "/api/history": Endpoint(NoQuery, HISTORY, self._history),
            "/api/sites": Endpoint(SitesQuery, TypeAdapter(Sites), self._sites),
            "/api/explain": Endpoint(ExplainQuery, TypeAdapter(Explanation), self._explain),
            "/api/static-calls": Endpoint(NoQuery, TypeAdapter(StaticCalls), self._static_calls),
            "/api/schema": Endpoint(NoQuery, TypeAdapter(dict[str, Any]), self._schema),
        }

    def _status(self, _: NoQuery) -> Status:
        return self._sources.status()

    def _bounds(self, _: NoQuery) -> Bounds:
        return Bounds()

    def _history(self, _: NoQuery) -> Sequence[Sample]:
        return self._sources.history()

    def _sites(self, query: SitesQuery) -> Sites:
        answer = self._ask(
            ListSites(pattern=query.pattern, states=query.state, order=query.order, top=query.top),
            HTTPStatus.CONFLICT,
        )
        return Sites(says=answer.says, sites=answer.sites)

    def _explain(self, query: ExplainQuery) -> Explanation:
        answer = self._ask(Explain(site=query.site), HTTPStatus.NOT_FOUND)
        if answer.explanation is None:
            raise NotServedError(HTTPStatus.NOT_FOUND, answer.says)
        return answer.explanation

    def _static_calls(self, _: NoQuery) -> StaticCalls:
        answer = self._ask(ListStaticCalls(), HTTPStatus.CONFLICT)
        return StaticCalls(says=answer.says, static_calls=answer.static_calls)

    def _schema(self, _: NoQuery) -> dict[str, Any]:
        return self._schemas

    @cached_property
    def _schemas(self) -> dict[str, Any]:
        """The schemas, made at the first request."""
        return {path: endpoint.schema() for path, endpoint in self.endpoints.items()}

    def _ask(self, question: Question, refused: HTTPStatus) -> Answer:
        if not self._places.acquire(blocking=False):
            raise _not_now(f"{ASKING_MAX} other clients wait for the daemon's answer")
        try:
            answer = self._sources.ask(question)
        finally:
            self._places.release()
        if answer is None:
            raise _not_now("the daemon does not answer in time: it is busy with the guest")
        match answer.outcome:
            case "refused":
                raise NotServedError(refused, answer.says)
            case "failed":
                raise NotServedError(HTTPStatus.BAD_GATEWAY, answer.says)
            case "done":
                return answer


def _not_now(why: str) -> NotServedError:
    status = HTTPStatus.SERVICE_UNAVAILABLE
    return NotServedError(status, f"{why}; ask again", (("Retry-After", "2"),))


def _parse(model: type[QueryT], query: str) -> QueryT:
    try:
        given = parse_qs(query, max_num_fields=_PARAMETERS_MAX)
    except ValueError as error:
        raise NotServedError(HTTPStatus.BAD_REQUEST, f"not a query: {error}") from error
    values = {name: many[0] if len(many) == 1 else many for name, many in given.items()}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        allowed = ", ".join(model.model_fields) or "none"
        raise NotServedError(
            HTTPStatus.BAD_REQUEST, f"not a query: {complaint(error)}; parameters: {allowed}"
        ) from error
