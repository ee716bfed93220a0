"""Answers as people and programs read them.

    output.py       where an answer goes, and the exit code
    sites.py        sites and static calls: a table on a terminal, else a line for each
    explanation.py  one site in depth
    figures.py      a status, a figure a line
    text.py         what may reach a terminal

Everything that a guest has named passes `text.printable`, and nothing is read as markup.
"""
