"""What is decided about the sites of an attached guest.

learner.py        the strategy, fed from the guest's counters
recorder.py       what the strategy sees and decides, written to a trace
overrides.py      pins, bans and a freeze: what operators have decided
override_file.py  these, kept for the daemon after one that died
operator.py       the operator's commands
names.py          sites and functions by name
arena_budget.py   which sites get the arena's space
call_rates.py     how often each site is called
event_log.py      what was decided and done, the newest first
gc_pause.py       Python's garbage collector, out of the way
"""
