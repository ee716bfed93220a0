"""Status, sites and metrics over HTTP, read-only, and a page that shows them.

sources.py   where it comes from
rest.py      questions and their answers, in JSON
app.py       requests to replies: routes, hosts, headers
server.py    sockets and threads
static/      the page
"""

from optpolined.telemetry.web.server import serve_web
from optpolined.telemetry.web.sources import Sources

__all__ = ("Sources", "serve_web")
