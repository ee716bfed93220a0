"""What the daemon tells others, and how it is asked.

history.py     the last hour
live.py        that on a terminal
metrics.py     that for Prometheus
server.py      status and requests on a unix socket
web/           all of that over HTTP, read-only, and a status page
timings.py     how long things take
logs.py        the log: journal, terminal or lines
notify.py      the status for a service manager, and the watchdog's pings
"""
