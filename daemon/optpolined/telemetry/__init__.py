"""What the daemon tells others, and how it is asked.

status.py      one guest at one moment
sites.py       its sites, in rows, and one of them explained
history.py     the last hour
live.py        that on a terminal
metrics.py     that for Prometheus
requests.py    what can be asked, and the way of a request to the reconcile loop
server.py      status and requests on a unix socket
web/           all of that over HTTP, read-only, and a status page
report.py      what a run did
logs.py        the log: journal, terminal or lines
notify.py      the status for a service manager, and the watchdog's pings
"""
