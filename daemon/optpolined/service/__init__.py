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
keytable.py    what was noted of a site's key
clearing.py    records zeroed, to be another site's
patcher.py     forms to changes, and who may free what
session.py     all of these over one attached guest
rates.py       how often each site is called and what that is worth, for people
timings.py     how long things take
tally.py       what is counted through all attachments
naming.py      sites and functions by the names that people give them
rules.py       pins, bans, standstill: what people decided
orders.py      that, kept for the daemon after one that died
governor.py    these rules over one strategy
chronicle.py   what was decided about sites and done to them
table.py       the sites in rows
explain.py     one of them explained
answers.py     what becomes of a request
teller.py      the status put together
summing.py     the report of a run
hub.py         what is told and asked, through all attachments
learner.py     the strategy, fed from the counters
recorder.py    what the strategy sees and decides, written to a trace
migration.py   whether QEMU is moving the guest
lending.py     the gdbstub given to a debugger, and taken back
daemon.py      the reconcile loop over one session
serve.py       from attach to detach, through resets and back
recover_only.py  puts back what a daemon that died left, and leaves
dryrun.py      what would be attached to
"""
