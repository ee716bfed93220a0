"""The last decisions about sites, and the last changes of them.

Each site keeps its last events; the journal keeps the last of all.  The events of a site are
dropped when its module is unloaded.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from optpolined.addresses import GuestVirtual
from optpolined.api.sites import Event
from optpolined.codegen.forms import ORIGINAL, Chain, Form, Keyed, LearnKeys, Original, Tree
from optpolined.learning.strategy import Decision
from optpolined.patching.inline_sites import Found, Unsettled

__all__ = ("EventLog", "form_name")

_EVENTS_OF_A_SITE = 24
_JOURNAL = 64


class _Entry(NamedTuple):
    """An event without names; they are looked up when a client asks."""

    at: float
    epoch: int
    site: GuestVirtual
    kind: Literal["decided", "changed", "refused"]
    state: str
    reason: str
    form: Found


_NAMES: Mapping[type, str] = {
    type(None): "somebody else's",
    Unsettled: "between two forms",
    Original: "original",
    LearnKeys: "key learning stub",
    Tree: "tree",
    Keyed: "keyed tree",
}


def form_name(form: Found) -> str:
    """Return the name of a form in the status API."""
    if not isinstance(form, Chain):
        return _NAMES[type(form)]
    if not form.targets:
        return "learning stub"
    return "chain that counts its hits" if form.counts_hits else "chain"


class EventLog:
    """The events of one attachment.

    :param now: Unix time in seconds.
    :param name: Returns the symbol of an address.
    """

    def __init__(self, now: Callable[[], float], name: Callable[[GuestVirtual], str]) -> None:
        self._now = now
        self._name = name
        self._of_sites: dict[GuestVirtual, deque[_Entry]] = {}
        self._journal: deque[_Entry] = deque(maxlen=_JOURNAL)

    def add_decision(
        self, epoch: int, decision: Decision, wanted: Mapping[GuestVirtual, Form]
    ) -> None:
        """Add the decision of an epoch; ``wanted`` has the wanted forms of all sites."""
        at = self._now()
        for site, state in decision.states.items():
            reason = decision.reasons.get(site, "")
            form = wanted.get(site, ORIGINAL)
            self._add(_Entry(at, epoch, site, "decided", state, reason, form))

    def add_changes(
        self, epoch: int, forms: Mapping[GuestVirtual, Form], refused: Mapping[GuestVirtual, str]
    ) -> None:
        """Add the changes of an epoch: the wanted ``forms``, and why some were refused."""
        at = self._now()
        for site, form in forms.items():
            reason = refused.get(site)
            if reason is None:
                self._add(_Entry(at, epoch, site, "changed", "", "", form))
            else:
                self._add(_Entry(at, epoch, site, "refused", "", reason, form))

    def drop_sites(self, sites: Iterable[GuestVirtual]) -> None:
        """Drop the events of sites whose module was unloaded."""
        for site in sites:
            self._of_sites.pop(site, None)

    def of(self, site: GuestVirtual) -> tuple[Event, ...]:
        """Return the events of one site, the newest first."""
        return self._events(self._of_sites.get(site, ()))

    def journal(self) -> tuple[Event, ...]:
        """Return the last events of all sites, the newest first."""
        return self._events(self._journal)

    def _add(self, entry: _Entry) -> None:
        events = self._of_sites.get(entry.site)
        if events is None:
            events = self._of_sites[entry.site] = deque(maxlen=_EVENTS_OF_A_SITE)
        events.append(entry)
        self._journal.append(entry)

    def _events(self, entries: Sequence[_Entry] | deque[_Entry]) -> tuple[Event, ...]:
        return tuple(self._event(entry) for entry in reversed(entries))

    def _event(self, entry: _Entry) -> Event:
        targets = getattr(entry.form, "targets", ())
        return Event(
            at=entry.at,
            epoch=entry.epoch,
            site=self._name(entry.site),
            kind=entry.kind,
            state=entry.state,
            reason=entry.reason,
            form=form_name(entry.form),
            targets=tuple(self._name(target) for target in dict.fromkeys(targets)),
        )
