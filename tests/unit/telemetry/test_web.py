"""The HTTP API, asked over loopback."""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from optpolined.api.requests import Answer, Explain, ListSites, Question
from optpolined.api.sites import Explanation
from optpolined.api.status import STATUS, STOP_BUCKETS_SECONDS, Status
from optpolined.telemetry.history import HISTORY, History
from optpolined.telemetry.web import Sources, serve_web
from optpolined.telemetry.web.app import App
from optpolined.telemetry.web.rest import ASKING_MAX, TOP_MAX
from tests.unit.telemetry.made_up import MARKUP, MadeUpGuest

PATIENCE_SECONDS = 20
GUEST = MadeUpGuest(500, odd_name=MARKUP)
APP = App(Sources(GUEST.status, GUEST.history, GUEST.ask, CollectorRegistry()), on_loopback=True)
ROUTES = (
    *("/", "/metrics", "/api/status", "/api/history", "/api/sites", "/api/static-calls"),
    *("/api/bounds", "/api/schema", f"/api/explain?site={quote(GUEST.rows[0].site)}"),
)


@dataclass
class Reply:
    """What came back."""

    code: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def line(self) -> str:
        """The one line of a refusal."""
        assert self.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert self.body.endswith(b"\n")
        (line,) = self.body.decode().splitlines()
        return line


def get(port: int, path: str, method: str = "GET", **headers: str) -> Reply:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)) as client:
        client.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = client.getresponse()
        return Reply(answer.status, answer.headers, answer.read())


def told(port: int, path: str) -> object:
    reply = get(port, path)
    assert reply.code == 200, reply
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["Cache-Control"] == "no-store"
    return json.loads(reply.body)


@contextmanager
def serve(
    ask: Callable[[Question], Answer | None] = GUEST.ask,
    status: Callable[[], Status] = GUEST.status,
    address: str = "127.0.0.1",
) -> Iterator[int]:
    registry = CollectorRegistry()
    Gauge("optpolined_up", "As in metrics.py.", registry=registry).set(1)
    with serve_web(address, 0, Sources(status, GUEST.history, ask, registry)) as port:
        yield port


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serve() as port:
        yield port


def test_the_status_is_the_one_of_the_socket(port: int) -> None:
    assert told(port, "/api/status") == json.loads(STATUS.dump_json(GUEST.status()))


def test_the_bounds_are_those_of_the_buckets(port: int) -> None:
    bounds, status = told(port, "/api/bounds"), told(port, "/api/status")
    assert isinstance(bounds, dict)
    assert isinstance(status, dict)
    assert tuple(bounds["stops"]) == STOP_BUCKETS_SECONDS
    for name, of in bounds.items():
        assert len(of) + 1 == len(status[name]["buckets"]), name


def test_the_history_is_told_oldest_first(port: int) -> None:
    moments = HISTORY.validate_python(told(port, "/api/history"))
    assert moments == GUEST.history()
    assert [moment.at for moment in moments] == sorted(moment.at for moment in moments)


def test_an_hour_that_has_not_begun_is_an_empty_one() -> None:
    sources = Sources(GUEST.status, History().samples, GUEST.ask, CollectorRegistry())
    with serve_web("127.0.0.1", 0, sources) as port:
        assert told(port, "/api/history") == []


def sites(port: int, **query: object) -> Sequence[dict[str, object]]:
    answer = told(port, f"/api/sites?{urlencode(query, doseq=True)}")
    assert isinstance(answer, dict)
    assert answer.keys() == {"says", "sites"}
    rows: list[dict[str, object]] = answer["sites"]
    return rows


def test_sites_are_chosen_by_pattern_and_states_and_ordered(port: int) -> None:
    everything = sites(port, top=TOP_MAX)
    assert len(everything) == len(GUEST.rows)
    assert [row["address"] for row in everything] == sorted(row.address for row in GUEST.rows)
    hottest = sites(port, order="calls", top=7)
    assert [row["site"] for row in hottest] == [row.site for row in GUEST.rows[:7]]
    some = sites(port, pattern="vfs_*", state=["promoted", "skipped"], top=TOP_MAX)
    assert {row["state"] for row in some} == {"promoted", "skipped"}
    assert all(str(row["site"]).startswith("vfs_") for row in some)
    assert sites(port, pattern="no_such_function") == []


def test_a_parameter_that_is_left_empty_is_not_given(port: int) -> None:
    assert told(port, "/api/sites?pattern=&state=&order=calls&top=") == told(
        port, "/api/sites?order=calls"
    )


def test_what_is_asked_of_the_loop_is_what_the_query_says() -> None:
    asked = []

    def ask(question: Question) -> Answer:
        asked.append(question)
        return Answer(outcome="done", says="none")

    with serve(ask) as port:
        told(port, "/api/sites?pattern=kvm%3A*&state=cold&order=misses&top=3")
        assert get(port, "/api/explain?site=f%2B0x1f+%5Bkvm%5D").code == 404
    assert asked == [
        ListSites(pattern="kvm:*", states=("cold",), order="misses", top=3),
        Explain(site="f+0x1f [kvm]"),
    ]


def test_names_with_markup_are_told_as_they_are(port: int) -> None:
    site = f"{MARKUP}+0x1f"
    explanation = told(port, f"/api/explain?site={quote(site)}")
    assert isinstance(explanation, dict)
    assert explanation["row"]["site"] == site
    assert Explanation(**explanation) == GUEST.ask(Explain(site=site)).explanation


def test_static_calls_are_told(port: int) -> None:
    answer = told(port, "/api/static-calls")
    assert isinstance(answer, dict)
    assert [row["key"] for row in answer["static_calls"]] == ["optseed_work"]


def test_the_schema_describes_every_answer(port: int) -> None:
    schema = told(port, "/api/schema")
    assert isinstance(schema, dict)
    assert {f"{path}" for path in schema} == {path.partition("?")[0] for path in ROUTES[2:]}
    status = schema["/api/status"]["answer"]
    assert status["properties"].keys() == asdict(GUEST.status()).keys()
    assert "debugger" in status["properties"]["stub_released"]["description"]
    assert schema["/api/sites"]["query"]["properties"].keys() == {
        *("pattern", "state", "order", "top")
    }


@pytest.mark.parametrize(
    ("accept", "kind"),
    [("*/*", "text/plain"), ("application/openmetrics-text; version=1.0.0", "application/openm")],
)
def test_metrics_come_in_the_format_that_is_asked_for(port: int, accept: str, kind: str) -> None:
    reply = get(port, "/metrics", Accept=accept)
    assert reply.headers["Content-Type"].startswith(kind)
    assert b"optpolined_up 1.0" in reply.body
    assert get(port, "/metrics", Accept_Encoding="gzip").headers["Content-Encoding"] == "gzip"


@pytest.mark.parametrize("path", ROUTES)
def test_head_tells_what_get_would(port: int, path: str) -> None:
    whole, head = get(port, path), get(port, path, "HEAD")
    assert head.body == b""
    assert head.headers["Content-Length"] == str(len(whole.body))
    assert dict(head.headers) | {"Date": ""} == dict(whole.headers) | {"Date": ""}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nothing_can_be_written(port: int, path: str, method: str) -> None:
    reply = get(port, path, method)
    assert (reply.code, reply.headers["Allow"]) == (405, "GET, HEAD")
    assert "read-only" in reply.line


@pytest.mark.parametrize("path", [*ROUTES, "/nothing", "/api/explain?site=x"])
def test_every_reply_is_for_this_page_alone(port: int, path: str) -> None:
    headers = get(port, path).headers
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; ")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert "Server" not in headers


@pytest.mark.parametrize(
    "path", ["/nothing", "/api", "/api/", "/metrics/", "/static/page.html", "/../metrics", "/%00"]
)
def test_what_is_not_there_gets_one_line(port: int, path: str) -> None:
    reply = get(port, path)
    assert reply.code == 404
    assert "/metrics" in reply.line


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/sites?top=0", "top Input should be greater"),
        (f"/api/sites?top={TOP_MAX + 1}", "top Input should be less"),
        ("/api/sites?top=many", "top Input should be a valid integer"),
        ("/api/sites?top=1&top=2", "top Input should be a valid integer"),
        ("/api/sites?order=name", "order Input should be 'address', 'calls' or 'misses'"),
        (f"/api/sites?pattern={'x' * 513}", "pattern String should have at most 512"),
        ("/api/sites?state=cold&state=" + "x" * 513, "state.1 String should have at most 512"),
        ("/api/sites?color=red", "color Extra inputs are not permitted; parameters: pattern, "),
        ("/api/sites?%0A%1b[2J=1", "?[2J Extra inputs are not permitted"),
        ("/api/sites?" + "&".join(f"a{n}=1" for n in range(40)), "Max number of fields"),
        ("/api/explain", "site Field required"),
        ("/api/explain?site=", "site Field required"),
        ("/api/status?x=1", "parameters: none"),
    ],
)
def test_a_wrong_query_gets_one_line(port: int, path: str, expected: str) -> None:
    reply = get(port, path)
    assert reply.code == 400
    assert expected in reply.line


def test_bytes_that_are_no_text_name_no_site(port: int) -> None:
    assert get(port, "/api/explain?site=%ff%fe").code == 404
    assert sites(port, pattern="\ud7ff\uffff") == []


@given(
    path=st.sampled_from([*(route.partition("?")[0] for route in ROUTES), "/nothing"]),
    query=st.text(st.characters(max_codepoint=255), max_size=200)
    | st.dictionaries(
        st.sampled_from(["pattern", "state", "order", "top", "site"]),
        st.lists(st.text(max_size=20) | st.integers(), max_size=3),
    ).map(lambda given: urlencode(given, doseq=True)),
    method=st.sampled_from(["GET", "HEAD", "POST", "BREW"]),
    host=st.sampled_from(["localhost", "evil.example"]) | st.text(max_size=20),
)
def test_any_request_gets_an_answer_or_one_line(
    path: str, query: str, method: str, host: str
) -> None:
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "HTTP_HOST": host,
    }
    begun: list[tuple[str, dict[str, str]]] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], _: object = None, /
    ) -> Callable[[bytes], object]:
        begun.append((status, dict(headers)))
        return lambda _: None

    body = b"".join(APP(environ, start_response))
    ((status, headers),) = begun
    code = int(status[:3])
    assert code in {200, 400, 403, 404, 405}
    if method == "HEAD":
        assert body == b""
    elif code != 200:
        assert len(body.decode().splitlines()) == 1
    else:
        assert int(headers["Content-Length"]) == len(body)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(outcome="refused", says="it is so"), 404),
        (Answer(outcome="failed", says="it is so"), 502),
        (Answer(outcome="done", says="it is so"), 404),
        (None, 503),
    ],
)
def test_what_the_loop_says_comes_through(answer: Answer | None, code: int) -> None:
    with serve(lambda _: answer) as port:
        reply = get(port, "/api/explain?site=f%2B1")
        assert reply.code == code
        assert ("it is so" if answer else "ask again") in reply.line
        assert reply.headers["Retry-After"] == (None if answer else "2")
        if answer and answer.outcome == "refused":
            assert get(port, "/api/sites").code == 409


@pytest.mark.parametrize(
    ("host", "code"),
    [
        *((host, 200) for host in ("localhost", "LOCALHOST:80", "127.0.0.1:1", "127.9.9.9")),
        *((host, 200) for host in ("[::1]", "[::1]:9000")),
        *((host, 403) for host in ("evil.example", "evil.example:80", "localhost.evil.example")),
        *((host, 403) for host in ("10.0.0.1", "0.0.0.0", "[::1", "", "127.0.0.1.nip.io")),
    ],
)
def test_on_loopback_only_this_host_s_names_are_served(port: int, host: str, code: int) -> None:
    for path in ("/", "/metrics", "/api/status", "/nothing"):
        expected = 404 if (code, path) == (200, "/nothing") else code
        assert get(port, path, Host=host).code == expected


def test_on_other_addresses_any_name_is_served() -> None:
    with serve(address="0.0.0.0") as port:
        assert get(port, "/metrics", Host="kvm7.example:9100").code == 200


def test_ipv6_is_served() -> None:
    with (
        serve(address="::1") as port,
        closing(http.client.HTTPConnection("::1", port, timeout=PATIENCE_SECONDS)) as client,
    ):
        client.request("GET", "/metrics")
        assert client.getresponse().status == 200


def raw(port: int, data: bytes) -> bytes:
    """What comes back until the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        said = b""
        while piece := client.recv(1 << 16):
            said += piece
        return said


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET /api/sites?pattern=".ljust(8192, b"x"), b"431"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ".ljust(8192, b"x"), b"431"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", b"403"),
    ],
)
def test_what_is_too_much_is_not_read(port: int, data: bytes, code: bytes) -> None:
    assert raw(port, data).split(b" ")[1] == code
    assert get(port, "/metrics").code == 200


def test_a_loop_that_hangs_hides_no_metrics() -> None:
    hang, waiting = threading.Event(), threading.Semaphore(0)

    def ask(_: Question) -> None:
        waiting.release()
        assert hang.wait(PATIENCE_SECONDS)

    replies: list[Reply] = []
    with serve(ask) as port:
        threads = [
            threading.Thread(target=lambda: replies.append(get(port, "/api/sites")))
            for _ in range(ASKING_MAX)
        ]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert waiting.acquire(timeout=PATIENCE_SECONDS)
        assert "other clients wait" in get(port, "/api/sites").line
        assert get(port, "/metrics").code == 200
        assert told(port, "/api/status")
        hang.set()
        for thread in threads:
            thread.join()
        assert [reply.code for reply in replies] == [503] * ASKING_MAX
        assert get(port, "/api/sites").code == 503  # there is room again


def test_clients_that_do_not_read_keep_no_thread() -> None:
    """As many as there are threads, and more, each with an answer that fills the socket."""
    many = MadeUpGuest(2000)
    with serve(many.ask, many.status) as port, ExitStack() as stack:
        for _ in range(12):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(b"GET /api/sites?top=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert get(port, "/metrics").code == 200


def test_at_the_end_nothing_is_left() -> None:
    before = threading.active_count()
    with serve() as port:
        kept = socket.create_connection(("127.0.0.1", port))
        assert get(port, "/metrics").code == 200
        assert threading.active_count() > before
    with kept:
        assert kept.recv(1) == b""
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        get(port, "/metrics")


def test_an_address_in_use_is_an_os_error(port: int) -> None:
    sources = Sources(GUEST.status, GUEST.history, GUEST.ask, CollectorRegistry())
    before = threading.active_count()
    with pytest.raises(OSError, match="in use"), serve_web("127.0.0.1", port, sources):
        pass
    with pytest.raises(socket.gaierror), serve_web("no.such.host.invalid", 0, sources):
        pass
    assert threading.active_count() == before


def test_metrics_of_a_made_up_guest_parse(port: int) -> None:
    (family,) = text_string_to_metric_families(get(port, "/metrics").body.decode())
    assert family.name == "optpolined_up"
