"""Where the status of the daemon goes, and where requests come from.

server.py         the status and requests on a unix socket
socket_client.py  the client's end of that socket
metrics.py        the status for Prometheus
history.py        the last hour, for a chart
web/              all of that over HTTP, read-only, and a status page
live.py           the status on a terminal
notify.py         the status for a service manager, and the watchdog's pings
logs.py           the log: journal, terminal or lines
timings.py        durations, in buckets
"""
