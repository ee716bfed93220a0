"""Traces: what learning saw of one guest, from attach to detach.

model.py   a trace, epoch by epoch
writer.py  writes traces to a file while they grow
reader.py  reads the traces of a file, which is not trusted
lines.py   the format of that file
errors.py  the errors of traces
"""
