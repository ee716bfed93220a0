"""Measures what a call costs in each form on this host's CPU, with the project's own code.

forms.py makes what stands at a site, programs.py runs a loop of sites and checks each call,
measure.py takes turns, fit.py makes a cost table of what they took.
"""
