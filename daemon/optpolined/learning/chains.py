"""Watches promoted sites by their misses, and audits a site whose misses look wrong."""

from optpolined.learning.shares import Contest, Seen, blend, contest, estimate
from optpolined.learning.state import Belief, History, HysteresisPhase, HysteresisSite, Window
from optpolined.learning.windows import Now, open_window

__all__ = ("audit_chain", "close_audit", "watch")

_AGE_MAX = 1 << 20
"""Epochs.  An older rate has faded to nothing, and the age must fit a float."""


def watch(site: HysteresisSite, seen: Seen, now: Now) -> HysteresisSite:
    """Decide on one epoch of the misses of a promoted site, whose hits are not counted."""
    belief = site.belief
    if belief is None or seen.slow < now.few_calls:
        return site
    s = now.settings
    misses = seen.slow / now.seconds
    alarm = misses > s.demote_share * belief.calls_per_second
    if alarm and now.epoch >= site.history.alarms.ready_at(now.flap_pauses):
        return _open_audit(site, belief, now, misses, alarm=True)
    if misses > _tolerated(belief, now) and now.epoch >= site.history.audits.ready_at(
        now.audit_pauses
    ):
        return _open_audit(site, belief, now, misses, alarm=False)
    return site


def _tolerated(belief: Belief, now: Now) -> float:
    """Return the misses per second that are expected."""
    s = now.settings
    age = min(now.epoch - belief.measured, _AGE_MAX)
    believed = belief.calls_per_second * float(0.5 ** (age / s.baseline_half_life_epochs))
    expected = 1 - sum([share for _, share in belief.chain])
    return believed * (expected + s.add_share)


def _open_audit(
    site: HysteresisSite, belief: Belief, now: Now, misses: float, *, alarm: bool
) -> HysteresisSite:
    return HysteresisSite(
        HysteresisPhase.MISSING,
        f"{misses:.0f} misses/s, {belief.calls_per_second:.0f} calls/s when last measured",
        site.history,
        now.epoch + now.settings.audit_epochs,
        Window(now.epoch, alarm=alarm),
        belief,
    )


def audit_chain(site: HysteresisSite, seen: Seen, now: Now) -> HysteresisSite:
    """Decide on one epoch in which the hits were counted too."""
    window = site.window
    if window is None or seen.total < now.few_calls:
        return site
    s = now.settings
    weight = s.newest_weight if window.busy else 1.0
    keep = 1.0 - weight
    missed = seen.slow > s.demote_share * seen.total
    window = Window(
        window.since,
        blend(window.shares, seen, weight),
        keep * window.direct + weight * seen.hits / seen.total,
        keep * window.calls_per_second + weight * seen.total / now.seconds,
        window.busy + 1,
        window.streak + 1 if missed else 0,
        (),
        window.alarm,
    )
    if site.belief is None or window.busy < s.demote_epochs:
        return _looked_on(site, window)
    return _judge(site, window, site.belief, now)


def _looked_on(site: HysteresisSite, window: Window) -> HysteresisSite:
    return HysteresisSite(site.phase, site.reason, site.history, site.deadline, window, site.belief)


def _judge(site: HysteresisSite, window: Window, belief: Belief, now: Now) -> HysteresisSite:
    """Admit challengers, relearn, or find the chain good enough; else wait.

    :param window: The window with this epoch; that of ``site`` is without it.
    """
    s = now.settings
    bad = window.streak >= s.demote_epochs
    may_change = now.epoch >= site.history.flaps.ready_at(now.flap_pauses)
    ended = contest(
        estimate(belief.chain, window.direct),
        window.shares,
        worth=s.add_share,
        margin=s.challenger_margin if may_change else None,
        # A chain grows beyond max_targets only where all its calls were counted by target.
        most=max(now.places, len(belief.chain)),
    )
    if ended.came and (not bad or sum([share for _, share in ended.chain]) >= 1 - s.demote_share):
        return _take_in(site, ended, window, now)
    if bad:
        return _give_up(site, window, now, may_change=may_change)
    looked_on = _looked_on(site, window)
    return looked_on if window.streak else close_audit(looked_on, now)


def _take_in(site: HysteresisSite, ended: Contest, window: Window, now: Now) -> HysteresisSite:
    history = site.history
    if ended.gone:
        flaps = history.flaps.strike(now.epoch, now.flap_pauses)
        history = History(flaps, history.audits, history.alarms)
    return HysteresisSite(
        HysteresisPhase.PROMOTED,
        f"challengers taken in: {ended.came}, targets given up: {ended.gone}",
        history,
        belief=Belief(ended.chain, window.calls_per_second, now.epoch),
    )


def _give_up(site: HysteresisSite, window: Window, now: Now, *, may_change: bool) -> HysteresisSite:
    reason = f"missed {1 - window.direct:.0%} of {window.calls_per_second:.0f} calls/s"
    if may_change:
        return open_window(site, now, HysteresisPhase.RELEARNING, reason)
    reason = f"{reason}, too soon after its last change"
    wake = site.history.flaps.ready_at(now.flap_pauses)
    return HysteresisSite(HysteresisPhase.QUARANTINE, reason, site.history, wake)


def close_audit(site: HysteresisSite, now: Now) -> HysteresisSite:
    """Find the chain good enough: keep what was measured, and audit less often."""
    window = site.window or Window(now.epoch)
    history, belief = site.history, site.belief
    if window.alarm:
        history = history._replace(alarms=history.alarms.strike(now.epoch, now.flap_pauses))
    else:
        history = history._replace(audits=history.audits.strike(now.epoch, now.audit_pauses))
    reason = "too few calls in the audit"
    if window.busy and belief is not None:
        reason = f"hits {window.direct:.0%} of {window.calls_per_second:.0f} calls/s"
        chain = estimate(belief.chain, window.direct)
        belief = Belief(chain, window.calls_per_second, now.epoch)
    return HysteresisSite(HysteresisPhase.PROMOTED, reason, history, belief=belief)
