"""Decides which targets are worth a direct branch.

Pure functions from counter snapshots to decisions: no I/O, no clock, no randomness.  All
strategies have one protocol (strategy.py); audit.py measures what any of them achieved.
Hysteresis is the default; continuous.py and periodic.py are its rivals, after two patches from the
kernel list.  They decide which targets a site gets; shape.py decides, by the costs of cost.py,
which form these take.

Hysteresis (hysteresis.py), one site::

                        +-----------------> cold <------------------+
                        |   too few calls     |    too few calls    |
                        |                     | another window,     |
                        |                     v in turn             |
    first window --> learning <---------------+                     |
                      |  | |                                        |
         no agreement |  | | the same targets have promote_share    |
                      v  | | for promote_epochs                     |
            megamorphic  | +----------> promoted <--------------+   |
              |          |               |     ^               |   |
              +----------+        misses |     | chain good    |   |
                 pause over              |     | enough, or    |   |
                                         v     | challenger in |   |
                                        missing                |   |
                     too soon again      |     | more than     |   |
                 +-----------------------+     | demote_share  |   |
                 v                             v               |   |
             quarantine ------------------> relearning --------+---+
                 ^         pause over          |    agreement
                 +-----------------------------+
                         no agreement

A first window whose targets keep changing, rather than being too many, ends in quarantine too.

================================  ==================================================
state                             what stands at the site
================================  ==================================================
learning, relearning              ``LEARNING``: all calls are counted by target
promoted                          ``Chain(targets)``, or what shape.py makes of it: only misses
                                  are counted
missing                           ``Chain(targets, counts_hits=True)``: an audit
cold, megamorphic, quarantine     ``ORIGINAL``
================================  ==================================================

Thresholds come in pairs: in at promote_share, out at demote_share.  A target with add_share of the
calls gets an empty place in a chain; a taken place goes only to a challenger that beats the weakest
target by challenger_margin.  Every change of targets, every window that fails and every audit that
found nothing is a strike (backoff.py).  The next one of its kind must wait twice as long, until the
site was calm for longer than it misbehaved.  So a site that alternates costs a number of pokes that
grows with the logarithm of time, whatever its period.

A site has max_targets targets at most.  If these miss promote_share and more would reach it, the
site gets more (8 in a chain, 16 in a tree), if the cost model says that they pay, which is so where
calls are skewed.  A site that pays in no form is megamorphic.
"""
