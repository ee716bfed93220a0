"""Status, sites and metrics over HTTP, read-only, and a page that shows them.

sources.py   where the data comes from
rest.py      the JSON API
app.py       from a request to a reply: routes, hosts, headers
server.py    sockets and threads
static/      the page
"""

from optpolined.telemetry.web.server import serve_web
from optpolined.telemetry.web.sources import Sources

__all__ = ("Sources", "serve_web")
