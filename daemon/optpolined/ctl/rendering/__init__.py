"""Answers as text for people, and as JSON for programs.

    output.py       where an answer goes, and the exit code
    sites.py        sites and static calls: a table on a terminal, otherwise a line for each
    explanation.py  one site in depth
    figures.py      a status, a figure a line
    text.py         what may reach a terminal

Every name from a guest passes `text.printable`, and is never read as markup.
"""
