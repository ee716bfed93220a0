"""Decisions about the sites of an attached guest.

learner.py        the strategy, fed from the guest's counters
recorder.py       writes what the strategy sees and decides to a trace
operator.py       carries out the operator's commands
overrides.py      the operator's pins, bans and freeze, which outlive an attachment
override_file.py  keeps them for a daemon that follows a crash
names.py          sites and functions by name
arena_budget.py   which sites get the arena's space
call_rates.py     how often each site is called
event_log.py      the last decisions and changes
gc_pause.py       keeps Python's garbage collector out of a decision
"""
