"""The reconcile loop, and the guest as the other rooms see it.

attach.py      the way in and out: sockets, process, memory, gdbstub, guardian
lock.py        one daemon for a QEMU process
rescue.py      resumes what a daemon left stopped, whose guardian died too
stops.py       stops, counted
machine.py     the guest as the poke engine's machine
entries.py     the guest's poke table
requests.py    the module's mailbox over that machine
recovery.py    what a daemon that died left, and how it is put back
survey.py      symbols, text and sites, and why some sites are left alone
text.py        the guest's code before and after
records.py     which counter record is whose
patcher.py     forms to changes, and who may free what
session.py     all of these over one attached guest
rates.py       how often each site is called, for people
learner.py     the strategy, fed from the counters
recorder.py    what the strategy sees and decides, written to a trace
migration.py   whether QEMU is moving the guest
lending.py     the gdbstub given to a debugger, and taken back
daemon.py      the reconcile loop over one session
serve.py       from attach to detach, through resets and back
recover_only.py  puts back what a daemon that died left, and leaves
dryrun.py      what would be attached to
"""
