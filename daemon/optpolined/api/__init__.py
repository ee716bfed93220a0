"""The wire schema that daemon, `optpolinectl` and telemetry share.

status.py         one guest at one moment
sites.py          its sites, in rows, and one of them explained
refusal.py        why a site is left alone, or a change refused
requests.py       what a client can ask of a daemon, and the answers
request_queue.py  the way of a request from a server's thread to the reconcile loop
errors.py         what can be wrong with a request
"""
