"""Who gets the arena's room, where it does not hold all the blocks that are wanted.

While everything fits, everybody gets what he wants.  Once it does not, the mode is *degraded*, and
stays so until everything has fitted for a while:

- the hottest promoted sites get up to three quarters of the room, by calls per second as last
  measured; one that stands already is displaced only by one that is hotter by a margin, and those
  that somebody pinned go before all others;
- the rest is for counting: learning windows and, now and then, the rates of promoted sites and of
  those that were denied, in turns.  Without it no newcomer would ever be found hot, and no site
  that has become cold would ever be found cold;
- an eighth is left free, for a site that changes needs its new block before its old one is free.

Who has no room stays, or becomes again, what the kernel was built with.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping

from optpolined.addresses import GuestVirtual
from optpolined.api.status import ArenaUse
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Code, Form
from optpolined.control.call_rates import CallRates
from optpolined.patching.arena import Arena
from optpolined.patching.inline_sites import Found

__all__ = ("CALM_EPOCHS", "MEASURE_EPOCHS", "SILENT_EPOCHS", "ArenaBudget", "fit")

_log = logging.getLogger(__name__)

_KEPT_FREE = 8
"""One part in so many."""

_MARGIN = 1.25
"""So much hotter is who displaces somebody."""

MEASURE_EPOCHS = 64
"""A rate that is older is measured again."""

SILENT_EPOCHS = 32
"""Who was not called at all in an epoch of learning makes room for others for so long."""

CALM_EPOCHS = 32
"""The degraded mode ends when everything has fitted for so long: learning comes in waves."""


class ArenaBudget:
    """Divides the arena among the sites.

    ``size_of`` returns how many bytes of the arena a site takes in a form.  ``rates`` is read only.
    """

    def __init__(self, size_of: Callable[[GuestVirtual, Form], int], rates: CallRates) -> None:
        self._size_of = size_of
        self.rates = rates
        self._calm = 0
        self.degraded = False
        self.denied: Collection[GuestVirtual] = ()
        """The sites that would be promoted if there were room."""
        self.waiting = 0
        """The sites that would learn if there were room."""

    def share(
        self,
        wanted: Mapping[GuestVirtual, Form],
        standing: Mapping[GuestVirtual, Found],
        room_bytes: int,
        epoch: int,
        pinned: Collection[GuestVirtual] = (),
    ) -> Mapping[GuestVirtual, Form]:
        """The forms that the sites may have, who is to get his first in front.

        :param standing: What stands there now; ``None`` where it is not ours.
        :param room_bytes: The arena without what nobody can free.
        :param pinned: Who goes before the hottest, and is never measured.
        """
        budget = room_bytes - room_bytes // _KEPT_FREE
        asking = {
            site: form
            for site, form in wanted.items()
            if isinstance(form, Code) and standing.get(site, ORIGINAL) is not None
        }
        self._judge(sum(self._size_of(site, form) for site, form in asking.items()), budget)
        if not self.degraded:
            self.denied, self.waiting = (), 0
            return wanted
        direct = {site: _plain(form) for site, form in asking.items() if form.targets}
        hottest = sorted(
            direct,
            key=lambda site: (site not in pinned, -self._worth(site, standing.get(site)), site),
        )
        granted, used = self._first(hottest, direct, budget * 3 // 4)
        self.denied = hottest[len(granted) :]
        free = {site: form for site, form in asking.items() if site not in pinned}
        counting = self._counting(free, granted, epoch)
        turns = sorted(counting, key=lambda site: self._turn(site, standing.get(site)))
        pupils, _ = self._first(turns, counting, budget - used)
        self.waiting = sum(not asking[site].targets for site in counting.keys() - pupils.keys())
        granted |= pupils
        return granted | {site: ORIGINAL for site in wanted if site not in granted}

    def use_of(self, arena: Arena) -> ArenaUse:
        """How the arena is used now."""
        usage = arena.usage()
        return ArenaUse(
            total_bytes=arena.size,
            used_bytes=usage.used,
            retired_bytes=usage.retired,
            degraded=self.degraded,
            denied=len(self.denied),
            denied_per_second=self.rates.calls_per_second(self.denied),
            waiting=self.waiting,
        )

    def _worth(self, site: GuestVirtual, form: Found) -> float:
        promoted = isinstance(form, Code) and form.targets
        return self.rates.of(site).calls_per_second * (_MARGIN if promoted else 1.0)

    def _turn(self, site: GuestVirtual, form: Found) -> tuple[bool, float, float, int]:
        """Who counts already goes on; then it is the turn of who was measured longest ago."""
        rate = self.rates.of(site)
        learns = isinstance(form, Code) and not form.targets
        return not learns, rate.measured, -rate.calls_per_second, site

    def _counting(
        self,
        asking: Mapping[GuestVirtual, Code],
        granted: Collection[GuestVirtual],
        epoch: int,
    ) -> dict[GuestVirtual, Code]:
        """Who is to count all his calls now, and how; those that were denied do so too."""
        counting: dict[GuestVirtual, Code] = {}
        for site, form in asking.items():
            rate = self.rates.of(site)
            age = epoch - rate.measured
            if not form.targets:
                if rate.calls_per_second > 0 or age >= SILENT_EPOCHS:
                    counting[site] = form
            elif _counts_hits(form) or age >= MEASURE_EPOCHS:
                chain = isinstance(form, Chain) and site in granted
                counting[site] = Chain(form.targets, counts_hits=True) if chain else LEARNING
        return counting

    def _first(
        self,
        sites: Iterable[GuestVirtual],
        forms: Mapping[GuestVirtual, Code],
        budget: int,
    ) -> tuple[dict[GuestVirtual, Form], int]:
        """The forms of the first sites, as many as fit into the budget, and what they take."""
        granted: dict[GuestVirtual, Form] = {}
        used = 0
        for site in sites:
            size = self._size_of(site, forms[site])
            if used + size > budget:
                break
            granted[site] = forms[site]
            used += size
        return granted, used

    def _judge(self, wanted_bytes: int, budget: int) -> None:
        fits = wanted_bytes <= budget
        self._calm = self._calm + 1 if fits else 0
        if not fits and not self.degraded:
            self.degraded = True
            _log.warning(
                "the arena is too small: blocks of %d KiB are wanted and it takes %d KiB; the "
                "hottest sites go first (in the guest, build optpoline.ko with a larger ARENA_MIB)",
                wanted_bytes >> 10,
                budget >> 10,
            )
        elif self.degraded and self._calm >= CALM_EPOCHS:
            self.degraded = False
            _log.warning("the arena holds all wanted blocks again")


def fit(
    changes: Mapping[GuestVirtual, Form],
    size_of: Callable[[GuestVirtual, Form], int],
    free_bytes: int,
) -> dict[GuestVirtual, Form]:
    """The changes for which there is room now; where it ends, those that need none."""
    fitting = {}
    for site, form in changes.items():
        size = size_of(site, form)
        if size <= free_bytes:
            fitting[site] = form
            free_bytes -= size
        else:
            free_bytes = 0  # nobody overtakes: a small block would be taken out of a large one's
    return fitting


def _counts_hits(form: Code) -> bool:
    return isinstance(form, Chain) and form.counts_hits


def _plain(form: Code) -> Code:
    return Chain(form.targets) if isinstance(form, Chain) else form
