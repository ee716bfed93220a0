"""Runs each system of the mail that the project grew from on one guest: ``make demo-seed``.

``rows.py`` knows what a row is, ``forms.py`` and ``systems.py`` have the rows: each puts forms into
the live guest, reads them back from its memory, and asks the guest whether its results are right.
"""
