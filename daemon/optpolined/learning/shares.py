"""Shares of a site's calls: seen, averaged, chosen.  Lists are hottest first, ties by address."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from optpolined.addresses import GuestVirtual
from optpolined.learning.strategy import SiteEpoch

__all__ = ("Seen", "Share", "blend", "choose", "contest", "covers", "estimate", "extend", "look")

_COUNT_MAX = 1 << 64
"""More calls than any epoch has: above it a count is nonsense, and would overflow a float."""
_TARGETS_KEPT = 16
"""Per site; a record has 7 slots per CPU, so a guest could show hundreds."""
_SHARE_KEPT = 0.001
_ROUNDING = 1e-9


class Share(NamedTuple):
    """A target and its part of the site's calls, 0 to 1."""

    target: GuestVirtual
    share: float


class Seen(NamedTuple):
    """The usable counts of a :class:`SiteEpoch`."""

    calls: dict[GuestVirtual, int]
    slow: int
    """Calls that reached the learning stub, by whatever target."""
    hits: int

    @property
    def total(self) -> int:
        """All counted calls."""
        return self.slow + self.hits


def look(site: SiteEpoch) -> Seen:
    """Drop what cannot be: negative counts, target 0 (a free slot), absurd numbers."""
    calls = {
        target: min(_COUNT_MAX, count)
        for target, count in site.calls.items()
        if count > 0 and target > 0
    }
    other = min(max(site.other, 0), _COUNT_MAX)
    return Seen(calls, sum(calls.values()) + other, min(max(site.hits, 0), _COUNT_MAX))


def blend(old: Sequence[Share], seen: Seen, weight: float) -> tuple[Share, ...]:
    """The moving average of the shares after one more epoch, which counts for ``weight``."""
    keep = 1.0 - weight
    shares = {target: share * keep for target, share in old}
    scale = weight / seen.total
    for target, count in seen.calls.items():
        shares[target] = shares.get(target, 0.0) + count * scale
    ranked = sorted((-share, target) for target, share in shares.items() if share >= _SHARE_KEPT)
    return tuple([Share(target, -negative) for negative, target in ranked[:_TARGETS_KEPT]])


def covers(shares: Iterable[Share], targets: Sequence[GuestVirtual], enough: float) -> bool:
    """Whether ``targets`` together have a share of ``enough``."""
    return sum([share for target, share in shares if target in targets]) >= enough - _ROUNDING


def choose(shares: Sequence[Share], enough: float, most: int) -> tuple[GuestVirtual, ...]:
    """The fewest targets, at most ``most``, with a share of ``enough``; none if they miss it."""
    chosen: list[GuestVirtual] = []
    total = 0.0
    for target, share in shares[:most]:
        chosen.append(target)
        total += share
        if total >= enough - _ROUNDING:
            return tuple(chosen)
    return ()


def extend(
    shares: Sequence[Share], chosen: Sequence[GuestVirtual], worth: float, most: int
) -> tuple[Share, ...]:
    """``chosen`` and, in its free places, further targets of at least ``worth``."""
    free = most - len(chosen)
    further = [s.target for s in shares if s.target not in chosen and s.share >= worth - _ROUNDING][
        :free
    ]
    return tuple(share for share in shares if share.target in chosen or share.target in further)


def estimate(chain: Sequence[Share], direct: float) -> tuple[Share, ...]:
    """The shares of a chain whose hits are known only as a sum: in proportion as before."""
    total = sum(share for _, share in chain)
    if total <= 0:
        return tuple(Share(target, direct / len(chain)) for target, _ in chain)
    return tuple(Share(target, share / total * direct) for target, share in chain)


def contest(
    chain: Sequence[Share],
    challengers: Sequence[Share],
    *,
    worth: float,
    margin: float | None,
    most: int,
) -> tuple[Share, ...]:
    """The chain after its challengers had their turn.

    A challenger of at least ``worth`` takes a free place.  In a full chain it takes the place of
    the weakest target where it beats that by ``margin``; with ``None`` nobody loses his place.
    """
    places = list(chain)
    for challenger in challengers:
        if challenger.share < worth - _ROUNDING:
            break
        if len(places) < most:
            places.append(challenger)
            continue
        # Of equally weak ones the last in the chain goes.
        weakest = min(reversed(range(len(places))), key=lambda place: places[place].share)
        if margin is None or challenger.share - places[weakest].share < margin - _ROUNDING:
            break
        places[weakest] = challenger
    return tuple(sorted(places, key=lambda share: -share.share))
