"""What was decided about sites and done to them, as far as it is worth to be remembered.

Each site keeps its last events, and the journal the last of all.  A site that goes with its module
takes its events along.
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
    """An event before anybody asks for it: names are looked up only then."""

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
    """A form in the words of the status API."""
    if not isinstance(form, Chain):
        return _NAMES[type(form)]
    if not form.targets:
        return "learning stub"
    return "chain that counts its hits" if form.counts_hits else "chain"


class EventLog:
    """The events of one attachment.

    :param now: Unix time in seconds.
    :param name: Of an address, for people.
    """

    def __init__(self, now: Callable[[], float], name: Callable[[GuestVirtual], str]) -> None:
        self._now = now
        self._name = name
        self._of_sites: dict[GuestVirtual, deque[_Entry]] = {}
        self._journal: deque[_Entry] = deque(maxlen=_JOURNAL)

    def add_decision(
        self, epoch: int, decision: Decision, wanted: Mapping[GuestVirtual, Form]
    ) -> None:
        """Remember what an epoch decided; ``wanted`` are the forms that all sites are to have."""
        at = self._now()
        for site, state in decision.states.items():
            reason = decision.reasons.get(site, "")
            form = wanted.get(site, ORIGINAL)
            self._add(_Entry(at, epoch, site, "decided", state, reason, form))

    def add_changes(
        self, epoch: int, forms: Mapping[GuestVirtual, Form], refused: Mapping[GuestVirtual, str]
    ) -> None:
        """Remember what was done to sites that were to have ``forms``."""
        at = self._now()
        for site, form in forms.items():
            reason = refused.get(site)
            if reason is None:
                self._add(_Entry(at, epoch, site, "changed", "", "", form))
            else:
                self._add(_Entry(at, epoch, site, "refused", "", reason, form))

    def drop_sites(self, sites: Iterable[GuestVirtual]) -> None:
        """Drop sites that are gone."""
        for site in sites:
            self._of_sites.pop(site, None)

    def of(self, site: GuestVirtual) -> tuple[Event, ...]:
        """What is remembered of one site, the newest first."""
        return self._told(self._of_sites.get(site, ()))

    def journal(self) -> tuple[Event, ...]:
        """The last events of all sites, the newest first."""
        return self._told(self._journal)

    def _add(self, entry: _Entry) -> None:
        events = self._of_sites.get(entry.site)
        if events is None:
            events = self._of_sites[entry.site] = deque(maxlen=_EVENTS_OF_A_SITE)
        events.append(entry)
        self._journal.append(entry)

    def _told(self, entries: Sequence[_Entry] | deque[_Entry]) -> tuple[Event, ...]:
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
