"""Traces: what learning saw of one guest, from attach to detach.

model.py   a trace, epoch by epoch
file.py    traces in a file, written while they grow, and read without trust
lines.py   the lines of that file
errors.py  the errors of traces
"""
