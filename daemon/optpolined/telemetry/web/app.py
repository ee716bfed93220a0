"""From a request to a reply: a table of routes, and rules for all of them.

- Only GET and HEAD are allowed.  An error is one line of text.
- Any page can make a browser ask a daemon that listens on loopback (DNS rebinding).  So such a
  daemon answers only requests whose Host is ``localhost`` or a loopback address.
- The page loads scripts, styles and data from this server only.  No other page may frame it.
"""

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from optpolined.api.errors import NotServedError
from optpolined.telemetry.web.rest import Api, Endpoint
from optpolined.telemetry.web.sources import Sources

__all__ = ("App",)

_METHODS = ("GET", "HEAD")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    ("Content-Security-Policy", _POLICY),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_PAGE = "page.html"


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply, without the headers that all replies have."""

    status: HTTPStatus
    body: bytes
    headers: tuple[tuple[str, str], ...]


Route = Callable[[WSGIEnvironment], Reply]


class App:
    """The WSGI application; with ``on_loopback`` only this host may reach it."""

    def __init__(self, sources: Sources, *, on_loopback: bool) -> None:
        self._on_loopback = on_loopback
        told: Mapping[str, Route] = {
            "/metrics": partial(_metrics, sources.registry),
            **{path: partial(_tell, at) for path, at in Api(sources).endpoints.items()},
        }
        self._routes = {**_static(), **told}
        self._named = ", ".join(("/", *told))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        try:
            reply = self._route(environ)(environ)
        except NotServedError as error:
            reply = Reply(
                error.status,
                f"{error}\n".encode(),
                (("Content-Type", "text/plain; charset=utf-8"), _NOT_KEPT, *error.headers),
            )
        length = ("Content-Length", str(len(reply.body)))
        start_response(
            f"{reply.status.value} {reply.status.phrase}", [*reply.headers, *_HEADERS, length]
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [reply.body]

    def _route(self, environ: WSGIEnvironment) -> Route:
        if self._on_loopback and not _is_loopback(environ.get("HTTP_HOST", "")):
            raise NotServedError(
                HTTPStatus.FORBIDDEN,
                "open http://localhost or http://127.0.0.1: other host names are refused",
            )
        route = self._routes.get(environ["PATH_INFO"])
        if route is None:
            raise NotServedError(HTTPStatus.NOT_FOUND, f"no such page; these exist: {self._named}")
        if environ["REQUEST_METHOD"] not in _METHODS:
            raise NotServedError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "read-only: use GET or HEAD",
                (("Allow", ", ".join(_METHODS)),),
            )
        return route


_NOT_KEPT = ("Cache-Control", "no-store")


def _is_loopback(host: str) -> bool:
    """Return whether a Host header names this host by a name that no DNS server decides."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _tell(endpoint: Endpoint[Any, Any], environ: WSGIEnvironment) -> Reply:
    body = endpoint.reply(environ["QUERY_STRING"]) + b"\n"
    return Reply(HTTPStatus.OK, body, (("Content-Type", "application/json"), _NOT_KEPT))


def _metrics(registry: CollectorRegistry, environ: WSGIEnvironment) -> Reply:
    """Return the metrics in the format that the client asks for."""
    told: list[tuple[str, str]] = []

    def start_response(_status: str, headers: list[tuple[str, str]]) -> None:
        told.extend(headers)

    # make_wsgi_app() has no HEAD.
    body = b"".join(make_wsgi_app(registry)(environ | {"REQUEST_METHOD": "GET"}, start_response))
    return Reply(HTTPStatus.OK, body, (*told, _NOT_KEPT))


def _static() -> Mapping[str, Route]:
    """Return the files of the page, by path; they are read once."""
    found = {}
    for file in files(__package__).joinpath("static").iterdir():
        kind = (("Content-Type", _TYPES[PurePath(file.name).suffix]), ("Cache-Control", "no-cache"))
        reply = Reply(HTTPStatus.OK, file.read_bytes(), kind)
        found["/" if file.name == _PAGE else f"/{file.name}"] = partial(_same, reply)
    return found


def _same(reply: Reply, _: WSGIEnvironment) -> Reply:
    return reply
