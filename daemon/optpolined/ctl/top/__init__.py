"""The live view of a guest's sites, like htop.

    source.py    asks the daemon for what the screen shows
    app.py       the screen: figures, the table of sites, a filter, keys
    head.py      the figures above the table
    explain.py   the screen of one site

A thread asks the daemon, so that the screen reacts to keys while the daemon is busy.  It asks for
one update at a time.
"""

import sys
import time

from optpolined.api.requests import Answer
from optpolined.ctl.client import DaemonClient
from optpolined.ctl.top.app import Top
from optpolined.ctl.top.source import View, as_line, look

__all__ = ("run_top",)


def run_top(daemon: DaemonClient, interval_seconds: float, *, as_json: bool) -> Answer:
    """Show the live view until you quit; as JSON, write one line at each interval.

    :raise NoAnswerError: the first request gets no answer.
    """
    daemon.status()
    if as_json:
        while True:
            sys.stdout.write(as_line(look(daemon, View())) + "\n")
            sys.stdout.flush()
            time.sleep(interval_seconds)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return Answer(
            outcome="refused",
            says="top needs a terminal; use --json, or `optpolinectl sites --order calls`",
        )
    Top(daemon, interval_seconds).run()
    return Answer(outcome="done", says="")
