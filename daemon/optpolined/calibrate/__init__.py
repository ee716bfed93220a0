"""What a call costs in each form on this host's CPU, by the project's own code run natively.

forms.py makes what stands at a site, programs.py runs a loop of sites and checks each call,
measure.py takes turns, fit.py makes a cost table of what they took.
"""
