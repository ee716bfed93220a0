"""What is told of an attached guest.  Everything here only reads.

status.py      the status of one moment
site_table.py  the sites, in rows
explain.py     one site, explained
summary.py     the report of a run, filled in
report.py      the report, as JSON and as lines
"""
