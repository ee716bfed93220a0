"""One attached guest.

link.py           the way in and out: sockets, process, memory, gdbstub, guardian
lock.py           one daemon for a QEMU process
rescue.py         resumes a guest that a dead daemon left stopped
migration.py      whether QEMU is moving the guest
access.py         transport, mailbox and poke table: the means to change the guest
attach.py         from a link to a session, and back where a step fails
session.py        the attached guest
counting.py       its counters, by site
reclaiming.py     blocks and records that are reused after a grace period
restoring.py      everything put back
modules.py        the modules it has loaded, and whether one guards its integrity
survey.py         its symbols, text and sites, and why some sites are left alone
text.py           its code before and after
census.py         all of its indirect calls, counted for a moment
mailbox.py        requests to its module
key_table.py      what the guest noted of a site's key
stub_handover.py  the gdbstub, given to a debugger and taken back
tally.py          what is counted through all attachments
recover_only.py   puts back what a dead daemon left, and leaves
errors.py         why a guest is not attached to
transport/        how bytes get into the guest
"""
