"""How bytes get into the guest.

stopped.py  over the gdbstub, in short stops
stops.py    the stops, counted
"""
