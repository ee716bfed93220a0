"""The laboratory: what learning saw, recorded, and what each strategy would have made of it.

trace.py        a trace: what learning saw of one guest, epoch by epoch
tracefile.py    traces in a file, written while they grow, and read without trust
truth.py        the calls that were really made, as far as a trace can tell
world.py        a guest made of a trace: it answers to what stands at its sites
ledger.py       what a strategy achieved, and what it cost
replay.py       a strategy at work on a trace
clairvoyant.py  what the best there could be would have achieved
table.py        the comparison, for people and as JSON
plot.py         the same as a picture
command.py      `optpolined replay`
"""
