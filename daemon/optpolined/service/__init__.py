"""The reconcile loop, and the guest as the other rooms see it.

attach.py      the way in and out: sockets, process, memory, symbols, gdbstub, guardian
stops.py       stops, counted
machine.py     the guest as the poke engine's machine
survey.py      symbols, text and sites, and why some sites are left alone
records.py     which counter record is whose
patcher.py     forms to changes, and who may free what
text.py        the guest's code before and after
daemon.py      the loop itself
"""
