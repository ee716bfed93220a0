"""The laboratory: what learning saw, recorded, and what each strategy would have made of it.

actual_calls.py the calls that were really made, as far as a trace can tell
simulated_guest.py a guest made of a trace: it answers to what stands at its sites
score.py        what a strategy achieved, and what it cost
replay.py       a strategy at work on a trace
clairvoyant.py  what the best there could be would have achieved
table.py        the comparison, for people and as JSON
plot.py         the same as a picture
command.py      `optpolined replay`
"""
