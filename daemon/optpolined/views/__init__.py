"""Read-only views of an attached guest.

status.py       the status of one moment
site_table.py   the sites, in rows
explain.py      one site, explained
report.py       the report of a run, as JSON and as lines
fill_report.py  what fills it in
"""
