"""Learning windows, in which every call of the site is counted by target."""

from collections.abc import Sequence

from optpolined.addresses import GuestVirtual
from optpolined.learning.backoff import Backoff, Pauses
from optpolined.learning.settings import LearningSettings
from optpolined.learning.shape import Shaper
from optpolined.learning.shares import Seen, Share, blend, choose, covers, extend
from optpolined.learning.state import Belief, History, HysteresisPhase, HysteresisSite, Window

__all__ = ("Now", "close_window", "first_window", "learn", "open_window", "unseen")


class Now:
    """The epoch that is decided, and what follows from the settings for every site."""

    __slots__ = (
        "audit_pauses",
        "epoch",
        "few_calls",
        "flap_pauses",
        "places",
        "seconds",
        "settings",
        "shaper",
    )

    def __init__(
        self, epoch: int, seconds: float, settings: LearningSettings, shaper: Shaper
    ) -> None:
        s = settings
        self.epoch = epoch
        self.seconds = seconds
        self.settings = settings
        self.shaper = shaper
        self.few_calls = max(1.0, s.min_calls_per_second * seconds)
        """An epoch with fewer calls is ignored."""
        self.places = min(s.max_targets, shaper.targets_max)
        """The targets of a site, unless more are needed and pay."""
        self.flap_pauses = Pauses(s.quarantine_epochs, s.quarantine_epochs_max, s.calm_epochs)
        """After a change of targets, a failed window or a false alarm."""
        self.audit_pauses = Pauses(s.audit_interval_epochs, s.quarantine_epochs_max, s.calm_epochs)
        """After an audit of moderate misses."""


def unseen(now: Now) -> HysteresisSite:
    """Return a site about which nothing is known, and which a census will notice."""
    fresh = Backoff(now.epoch)
    return HysteresisSite(
        HysteresisPhase.COLD, "no census has seen it called often", History(fresh, fresh, fresh)
    )


def first_window(now: Now) -> HysteresisSite:
    """Return a site about which nothing is known, and which learns by a stub."""
    return open_window(unseen(now), now, HysteresisPhase.LEARNING, "first window")


def open_window(
    site: HysteresisSite, now: Now, phase: HysteresisPhase, reason: str
) -> HysteresisSite:
    """Learn from nothing."""
    deadline = now.epoch + now.settings.learn_epochs
    return HysteresisSite(phase, reason, site.history, deadline, Window(now.epoch))


def learn(site: HysteresisSite, seen: Seen, now: Now) -> HysteresisSite:
    """Decide on one epoch of a learning window; too few calls neither promote nor reset."""
    window = site.window
    total = seen.total
    if window is None or total < now.few_calls:
        return site
    s = now.settings
    weight = s.newest_weight if window.busy else 1.0
    shares = blend(window.shares, seen, weight)
    rate = (1.0 - weight) * window.calls_per_second + weight * total / now.seconds
    candidate, streak = window.candidate, window.streak + 1
    if not candidate or not covers(shares, candidate, s.promote_share):
        candidate = _candidate(shares, now, keyed=seen.keyed)
        streak = 1 if candidate else 0
    window = Window(
        window.since, shares, 0.0, rate, window.busy + 1, streak, candidate, keyed=seen.keyed
    )
    if streak >= s.promote_epochs:
        return _promote(site, window, now)
    return HysteresisSite(site.phase, site.reason, site.history, site.deadline, window)


def _candidate(shares: Sequence[Share], now: Now, *, keyed: bool) -> tuple[GuestVirtual, ...]:
    """Return the targets that are worth a form: the fewest with the share; empty if none pay."""
    s = now.settings
    chosen = choose(shares, s.promote_share, now.places)
    if not chosen:
        chosen = choose(shares, s.promote_share, now.shaper.targets_max)
    return chosen if now.shaper.pays(shares[: len(chosen)], keyed=keyed) else ()


def _promote(site: HysteresisSite, window: Window, now: Now) -> HysteresisSite:
    s = now.settings
    places = now.places
    if len(window.candidate) > places:
        places = now.shaper.targets_max
    chain = extend(window.shares, window.candidate, s.add_share, places)
    share = sum([share for _, share in chain])
    return HysteresisSite(
        HysteresisPhase.PROMOTED,
        f"{len(chain)} targets take {share:.0%} of {window.calls_per_second:.0f} calls/s",
        _ended(site, now),
        belief=Belief(chain, window.calls_per_second, now.epoch),
    )


def _ended(site: HysteresisSite, now: Now) -> History:
    # A relearning window counts as a flap whatever its result, so that a failure doubles only once.
    return _struck(site.history, now) if site.phase is HysteresisPhase.RELEARNING else site.history


def _struck(history: History, now: Now) -> History:
    return history._replace(flaps=history.flaps.strike(now.epoch, now.flap_pauses))


def close_window(site: HysteresisSite, now: Now) -> HysteresisSite:
    """End the window without agreement."""
    s = now.settings
    window = site.window or Window(now.epoch)
    extended = window.since + s.learn_epochs + s.promote_epochs
    if window.streak and now.epoch < extended:
        return site._replace(deadline=extended)
    history = _ended(site, now)
    if window.busy < s.promote_epochs:
        reason = f"under {s.min_calls_per_second:g} calls/s in most of the window"
        return HysteresisSite(HysteresisPhase.COLD, reason, history)
    trouble = _too_many(window, now)
    phase = HysteresisPhase.QUARANTINE
    if trouble is not None and site.phase is HysteresisPhase.LEARNING:
        phase = HysteresisPhase.MEGAMORPHIC
    if site.phase is HysteresisPhase.LEARNING:
        history = _struck(history, now)
    wake = max(now.epoch + 1, history.flaps.ready_at(now.flap_pauses))
    return HysteresisSite(
        phase, trouble or f"no {s.promote_epochs} epochs agreed on the targets", history, wake
    )


def _too_many(window: Window, now: Now) -> str | None:
    """Return why the targets are too many for any form; ``None`` if they are not."""
    s = now.settings
    hottest = window.shares[: now.shaper.targets_max]
    chosen = choose(hottest, s.promote_share, len(hottest))
    if not chosen:
        best = sum([share for _, share in hottest])
        return f"the hottest {len(hottest)} targets take {best:.0%}, {s.promote_share:.0%} needed"
    if now.shaper.pays(hottest[: len(chosen)], keyed=window.keyed):
        return None
    saving = now.shaper.saving(hottest[: len(chosen)])
    least = now.shaper.settings.min_saving_share
    return f"direct calls to {len(chosen)} targets would save {saving:.0%}, {least:.0%} needed"
