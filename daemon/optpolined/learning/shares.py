"""Computes and chooses shares of a site's calls.  Lists are hottest first, ties by address."""

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from optpolined.addresses import GuestVirtual
from optpolined.learning.strategy import Share, SiteEpoch

__all__ = (
    "Contest",
    "Seen",
    "Share",
    "blend",
    "choose",
    "contest",
    "covers",
    "estimate",
    "extend",
    "look",
    "targets_of",
)

_COUNT_MAX = 1 << 64
"""More calls than any epoch has; a greater count is nonsense, and would overflow a float."""
_TARGETS_KEPT = 16
"""Per site; a record has 7 slots per CPU, so a guest could show hundreds."""
_SHARE_KEPT = 0.001
_ROUNDING = 1e-9


_part = itemgetter(1)


class Seen(NamedTuple):
    """The usable counts of a :class:`SiteEpoch`."""

    calls: Mapping[GuestVirtual, int]
    slow: int
    """Calls that reached the learning stub, of all targets."""
    hits: int
    total: int
    """All counted calls."""
    keyed: bool


def look(site: SiteEpoch) -> Seen:
    """Drop impossible counts: negative ones, target 0 (a free slot), absurd numbers."""
    calls, other, hits = site.calls, site.other, site.hits
    slow = sum(calls.values())
    # Nearly always all counts are possible, and no copy is needed.
    if calls and (slow > _COUNT_MAX or min(calls.values()) <= 0 or min(calls) <= 0):
        calls = {
            target: min(_COUNT_MAX, count)
            for target, count in calls.items()
            if count > 0 and target > 0
        }
        slow = sum(calls.values())
    if other:
        slow += min(other, _COUNT_MAX) if other > 0 else 0
    if hits:
        hits = min(hits, _COUNT_MAX) if hits > 0 else 0
    return Seen(calls, slow, hits, slow + hits, site.keyed)


def blend(old: Sequence[Share], seen: Seen, weight: float) -> tuple[Share, ...]:
    """Return the moving average of the shares after one more epoch, which has this ``weight``."""
    keep = 1.0 - weight
    scale = weight / seen.total
    shares = {target: share * keep for target, share in old}
    known = shares.get
    for target, count in seen.calls.items():
        shares[target] = known(target, 0.0) + count * scale
    # Sorting is stable, in reverse too: equal ones stay in the order of their addresses.
    ranked = sorted(shares.items())
    ranked.sort(key=_part, reverse=True)
    if len(ranked) > _TARGETS_KEPT:
        del ranked[_TARGETS_KEPT:]
    while ranked and ranked[-1][1] < _SHARE_KEPT:
        ranked.pop()
    return tuple(ranked)


def covers(shares: Iterable[Share], targets: Sequence[GuestVirtual], enough: float) -> bool:
    """Return whether ``targets`` together have a share of ``enough``."""
    return sum([share for target, share in shares if target in targets]) >= enough - _ROUNDING


def choose(shares: Sequence[Share], enough: float, most: int) -> tuple[GuestVirtual, ...]:
    """Return the fewest targets with a share of ``enough``; empty if ``most`` of them miss it."""
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
    """Return ``chosen`` and, in its free places, further targets of at least ``worth``."""
    free = most - len(chosen)
    chain = []
    for share in shares:
        if share[0] in chosen:
            chain.append(share)
        elif free > 0 and share[1] >= worth - _ROUNDING:
            chain.append(share)
            free -= 1
    return tuple(chain)


def targets_of(chain: Sequence[Share]) -> tuple[GuestVirtual, ...]:
    """Return the targets alone, each once."""
    return next(zip(*chain, strict=True), ())


def estimate(chain: Sequence[Share], direct: float) -> tuple[Share, ...]:
    """Return the shares of a chain whose hits are known only as a sum: in proportion as before."""
    total = sum(map(_part, chain))
    if total <= 0:
        return tuple([(target, direct / len(chain)) for target, _ in chain])
    return tuple([(target, share / total * direct) for target, share in chain])


class Contest(NamedTuple):
    """A chain after its challengers."""

    chain: tuple[Share, ...]
    came: int
    """Challengers that are in it now."""
    gone: int
    """Targets that lost their place."""


def contest(
    chain: Sequence[Share],
    shares: Sequence[Share],
    *,
    worth: float,
    margin: float | None,
    most: int,
) -> Contest:
    """Let the targets of ``shares`` that are not in the chain challenge it.

    A challenger of at least ``worth`` takes a free place.  In a full chain it takes the place of
    the weakest target if it beats that by ``margin``; with ``None`` no target loses its place.
    """
    # Of equally weak targets the last in the chain goes.  A challenger that was admitted stays,
    # because the next one is not hotter.
    kept, names = list(chain), targets_of(chain)
    free = most - len(kept)
    came = []
    for challenger in shares:
        target, share = challenger
        if share < worth - _ROUNDING:
            break
        if target in names:
            continue
        if free > 0:
            free -= 1
        elif margin is None or not kept or share - kept[-1][1] < margin - _ROUNDING:
            break
        else:
            kept.pop()
        came.append(challenger)
    gone = len(chain) - len(kept)
    if came:
        kept += came
        kept.sort(key=_part, reverse=True)
    return Contest(tuple(kept), len(came), gone)
