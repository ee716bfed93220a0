"""Changing the instructions of a running kernel: the protocol, as data.

    changes --steps()--> Step, Step, ... --execute()--> a Machine
    inline changes --inline_steps()--> Step, Grace, Step, ... --walk()--> a PatientMachine

`steps.py` turns changes into steps and is the only description of the protocol; `inline_change.py`
makes of it what an inline site needs, which is two instructions and a grace period; `execute.py`
walks the steps over a `Machine` and drops the sites that somebody else touched; `standing.py` reads
what a dead daemon left at a site.  All of it is pure: a machine may be a guest or a model of one,
and tests/model explores every interleaving of the very same steps with such a model.

Errors:

    PokeError
    +-- ChangeError       a change that no protocol can make (the caller's fault)
    +-- SiteRefusedError  a site that must stay as it is (the guest's doing)
"""
