"""Sockets and threads: waitress, with limits on all that a client can make it hold."""

import ipaddress
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from waitress import wasyncore
from waitress.server import create_server

from optpolined.telemetry.web.app import App
from optpolined.telemetry.web.rest import ASKING_MAX
from optpolined.telemetry.web.sources import Sources

__all__ = ("serve_web",)

_THREADS = ASKING_MAX + 2
_CONNECTIONS_MAX = 64
_SILENCE_SECONDS = 20
_HEADER_MAX = 8 << 10
_BODY_MAX = 1 << 10
_REPLY_MAX = 64 << 20
"""More than any reply, so that a thread never waits for a client that does not read."""

# A client that asks faster than we answer has to wait, which is no reason for a warning.
logging.getLogger("waitress.queue").setLevel(logging.ERROR)


@contextmanager
def serve_web(address: str, port: int, sources: Sources) -> Iterator[int]:
    """Serve over HTTP until the block ends; yield the port, which the system chooses for 0.

    Any client may read all of it: where ``address`` is not loopback, the whole network.

    :raise OSError: the address cannot be bound.
    """
    family, _, _, _, place = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.create_server(place[:2], family=family) as listener:
        on_loopback = ipaddress.ip_address(place[0]).is_loopback
        with _running(listener, App(sources, on_loopback=on_loopback)):
            yield listener.getsockname()[1]


@contextmanager
def _running(listener: socket.socket, app: App) -> Iterator[None]:
    connections: dict[int, wasyncore.dispatcher] = {}
    server = create_server(
        app,
        map=connections,
        sockets=[listener],
        threads=_THREADS,
        connection_limit=_CONNECTIONS_MAX,
        channel_timeout=_SILENCE_SECONDS,
        cleanup_interval=_SILENCE_SECONDS // 2,
        max_request_header_size=_HEADER_MAX,
        max_request_body_size=_BODY_MAX,
        outbuf_high_watermark=_REPLY_MAX,
        clear_untrusted_proxy_headers=True,
        asyncore_use_poll=True,
        ident=None,
    )
    thread = threading.Thread(target=server.run, name="web", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # The loop ends when it has no socket left; only its own thread may close them.
        server.task_dispatcher.shutdown()
        server.trigger.pull_trigger(lambda: wasyncore.close_all(connections))
        thread.join()
