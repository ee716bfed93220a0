"""Changing the instructions of a running kernel: the protocol, as data.

    changes --steps()--> Step, Sync, Step, ... --execute()--> a Transport
    inline changes --inline_steps()--> Step, Sync, Grace, Step, ... --walk()--> a Transport

`steps.py` turns changes into steps and is the only description of the protocol; `inline_change.py`
makes of it what an inline site needs, which is two instructions and a grace period; `transport.py`
says what a way into the guest promises; `execute.py` walks a plan over one and drops the sites that
another program touched; `standing.py` reads what a dead daemon left at a site.  All of it is pure:
a transport may lead to a guest or to a model of one, and tests/model explores every interleaving of
the very same plans with such a model.

`choice.py` says which protocol the operator's setting means for what.

Errors:

    PokeError
    +-- ChangeError       a change that no protocol can make (the caller's fault)
    +-- SiteRefusedError  a site that must stay as it is (the guest's doing)
"""
