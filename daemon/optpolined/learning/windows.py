"""Learning windows: every call of the site is counted by target."""

from dataclasses import dataclass, replace

from optpolined.learning.backoff import Backoff, Pauses
from optpolined.learning.settings import LearningSettings
from optpolined.learning.shares import Seen, blend, choose, covers, extend
from optpolined.learning.state import Belief, History, Phase, SiteState, Window

__all__ = ("Now", "close_window", "first_window", "learn", "open_window")


@dataclass(frozen=True, slots=True)
class Now:
    """The epoch that is being decided."""

    epoch: int
    seconds: float
    settings: LearningSettings

    @property
    def few_calls(self) -> float:
        """An epoch with fewer calls says nothing."""
        return max(1.0, self.settings.min_calls_per_second * self.seconds)

    @property
    def flap_pauses(self) -> Pauses:
        """After a change of targets, a failed window or a false alarm."""
        s = self.settings
        return Pauses(s.quarantine_epochs, s.quarantine_epochs_max, s.calm_epochs)

    @property
    def audit_pauses(self) -> Pauses:
        """After an audit of moderate misses."""
        s = self.settings
        return Pauses(s.audit_interval_epochs, s.quarantine_epochs_max, s.calm_epochs)


def first_window(now: Now) -> SiteState:
    """A site that nothing is known of."""
    fresh = Backoff(now.epoch)
    site = SiteState(Phase.COLD, "", History(fresh, fresh, fresh))
    return open_window(site, now, Phase.LEARNING, "first window")


def open_window(site: SiteState, now: Now, phase: Phase, reason: str) -> SiteState:
    """Learn from nothing."""
    deadline = now.epoch + now.settings.learn_epochs
    return SiteState(phase, reason, site.history, deadline, Window(now.epoch))


def learn(site: SiteState, seen: Seen, now: Now) -> SiteState:
    """One epoch of a learning window; too few calls neither promote nor reset."""
    window = site.window
    if window is None or seen.total < now.few_calls:
        return site
    s = now.settings
    weight = s.newest_weight if window.busy else 1.0
    shares = blend(window.shares, seen, weight)
    rate = (1.0 - weight) * window.calls_per_second + weight * seen.total / now.seconds
    candidate, streak = window.candidate, window.streak + 1
    if not candidate or not covers(shares, candidate, s.promote_share):
        candidate = choose(shares, s.promote_share, s.max_targets)
        streak = 1 if candidate else 0
    window = Window(window.since, shares, 0.0, rate, window.busy + 1, streak, candidate)
    if streak >= s.promote_epochs:
        return _promote(site, window, now)
    return SiteState(site.phase, site.reason, site.history, site.deadline, window)


def _promote(site: SiteState, window: Window, now: Now) -> SiteState:
    s = now.settings
    chain = extend(window.shares, window.candidate, s.add_share, s.max_targets)
    share = sum(share for _, share in chain)
    return SiteState(
        Phase.PROMOTED,
        f"{len(chain)} targets take {share:.0%} of {window.calls_per_second:.0f} calls/s",
        _ended(site, now),
        belief=Belief(chain, window.calls_per_second, now.epoch),
    )


def _ended(site: SiteState, now: Now) -> History:
    # Whatever a relearning window brings, it was a flap: two ways of failing would double twice.
    return _struck(site.history, now) if site.phase is Phase.RELEARNING else site.history


def _struck(history: History, now: Now) -> History:
    return replace(history, flaps=history.flaps.strike(now.epoch, now.flap_pauses))


def close_window(site: SiteState, now: Now) -> SiteState:
    """The window ends without agreement."""
    s = now.settings
    window = site.window or Window(now.epoch)
    extended = window.since + s.learn_epochs + s.promote_epochs
    if window.streak and now.epoch < extended:
        return replace(site, deadline=extended)
    history = _ended(site, now)
    if window.busy < s.promote_epochs:
        reason = f"under {s.min_calls_per_second:g} calls/s in most of the window"
        return SiteState(Phase.COLD, reason, history)
    phase = Phase.QUARANTINE
    best = sum(share for _, share in window.shares[: s.max_targets])
    reason = f"the hottest {s.max_targets} targets take {best:.0%}, {s.promote_share:.0%} needed"
    if best >= s.promote_share:
        reason = f"no {s.promote_epochs} epochs agreed on the targets"
    elif site.phase is Phase.LEARNING:
        phase = Phase.MEGAMORPHIC
    if site.phase is Phase.LEARNING:
        history = _struck(history, now)
    wake = max(now.epoch + 1, history.flaps.ready_at(now.flap_pauses))
    return SiteState(phase, reason, history, wake)
