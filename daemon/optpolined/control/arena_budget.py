"""Which sites get the arena's space, where it does not hold all the blocks that are wanted.

While everything fits, every site gets what it wants.  Once it does not, the mode is *degraded*, and
stays so until everything has fitted for a while:

- The hottest promoted sites get up to three quarters of the space, by calls per second as last
  measured.  Pinned sites go before all others.  A site that has a block loses it only to a site
  that is hotter by a margin.
- The rest is for counting: for learning windows and, from time to time, for the rates of promoted
  and of denied sites, in turn.  Without it a new site would never be found hot, and a site that
  has become cold would never be found cold.
- An eighth is left free, because a site that changes needs its new block before its old one is
  free.

A site without space keeps, or gets back, the code that the kernel was built with.
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
"""An eighth of the arena."""

_MARGIN = 1.25
"""A site displaces another one that is colder by this factor."""

MEASURE_EPOCHS = 64
"""A rate that is older is measured again."""

SILENT_EPOCHS = 32
"""A site without calls in an epoch of learning leaves its space to others for this long."""

CALM_EPOCHS = 32
"""The degraded mode ends when everything has fitted for this long: learning comes in waves."""


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
        """The sites that would be promoted if there were space."""
        self.waiting = 0
        """How many sites would learn if there were space."""

    def share(
        self,
        wanted: Mapping[GuestVirtual, Form],
        standing: Mapping[GuestVirtual, Found],
        room_bytes: int,
        epoch: int,
        pinned: Collection[GuestVirtual] = (),
    ) -> Mapping[GuestVirtual, Form]:
        """Return the forms that the sites may have; those that go first are in front.

        :param standing: The forms of the sites now; ``None`` where the bytes are foreign.
        :param room_bytes: The arena without the blocks that must not be freed.
        :param pinned: Sites that go before the hottest ones, and are never measured.
        """
        budget = room_bytes - room_bytes // _KEPT_FREE
        asking = {
            site: form
            for site, form in wanted.items()
            if isinstance(form, Code) and standing.get(site, ORIGINAL) is not None
        }
        self._update_mode(sum(self._size_of(site, form) for site, form in asking.items()), budget)
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
        learners, _ = self._first(turns, counting, budget - used)
        self.waiting = sum(not asking[site].targets for site in counting.keys() - learners.keys())
        granted |= learners
        return granted | {site: ORIGINAL for site in wanted if site not in granted}

    def use_of(self, arena: Arena) -> ArenaUse:
        """Return how the arena is used now."""
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
        """Sites that already count go first, then the site that was measured longest ago."""
        rate = self.rates.of(site)
        learns = isinstance(form, Code) and not form.targets
        return not learns, rate.measured, -rate.calls_per_second, site

    def _counting(
        self,
        asking: Mapping[GuestVirtual, Code],
        granted: Collection[GuestVirtual],
        epoch: int,
    ) -> dict[GuestVirtual, Code]:
        """Return the sites that count all their calls now, with the form; denied ones do too."""
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
        """Return the forms of the first sites that fit into the budget, and the bytes they take."""
        granted: dict[GuestVirtual, Form] = {}
        used = 0
        for site in sites:
            size = self._size_of(site, forms[site])
            if used + size > budget:
                break
            granted[site] = forms[site]
            used += size
        return granted, used

    def _update_mode(self, wanted_bytes: int, budget: int) -> None:
        fits = wanted_bytes <= budget
        self._calm = self._calm + 1 if fits else 0
        if not fits and not self.degraded:
            self.degraded = True
            _log.warning(
                "the arena is too small: the wanted blocks take %d KiB and it holds %d KiB; the "
                "hottest sites go first; load optpoline.ko with a larger arena_bytes",
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
    """Return the changes that fit into the free bytes; after those, the changes that need none."""
    fitting = {}
    for site, form in changes.items():
        size = size_of(site, form)
        if size <= free_bytes:
            fitting[site] = form
            free_bytes -= size
        else:
            free_bytes = 0  # a small block must not take the space that a larger one waits for
    return fitting


def _counts_hits(form: Code) -> bool:
    return isinstance(form, Chain) and form.counts_hits


def _plain(form: Code) -> Code:
    return Chain(form.targets) if isinstance(form, Chain) else form
