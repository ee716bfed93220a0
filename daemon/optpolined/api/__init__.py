"""The wire schema that daemon, `optpolinectl` and telemetry share.

status.py    one guest at one moment
refusal.py   why a site is left alone
sites.py     its sites, in rows, and one of them explained
requests.py  what can be asked of a daemon, and the way of a request to the reconcile loop
errors.py    what can be wrong with a request
"""
