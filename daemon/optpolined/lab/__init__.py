"""The laboratory: tries strategies on recorded traces.

actual_calls.py the calls that were really made, as far as a trace shows them
simulated_guest.py a guest made from a trace: its counts depend on what stands at its sites
score.py        what a strategy achieved, and what it cost
replay.py       runs a strategy on a trace
clairvoyant.py  the result of the best possible decisions
table.py        the comparison, for people and as JSON
plot.py         the same as a picture
command.py      `optpolined replay`
"""
