"""How bytes get into the guest.

stopped.py   over the gdbstub, in short stops
prepared.py  what is prepared before a stop
stops.py     the stops, counted
"""
