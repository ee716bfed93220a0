"""Which form the targets of a site take: chain, tree by target, or tree by key.

A strategy decides which targets are worth a direct branch, and speaks of them as of a chain.  A
:class:`Shaper` finds the form that the cost model calls cheapest, or that the settings name; a
strategy may ask it whether a chain pays at all.  :class:`Shapes` stands between a strategy and the
text of the guest, and translates both ways.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import (
    LEARNING,
    MAX_TARGETS,
    ORIGINAL,
    Chain,
    Form,
    Key,
    Keyed,
    LearnKeys,
    Tree,
)
from optpolined.learning.cost import Costs
from optpolined.learning.errors import SettingError
from optpolined.learning.ranges import check_ranges
from optpolined.learning.strategy import Decision, Share, SiteEpoch

__all__ = ("SHAPE_RANGES", "FormChoice", "KeyTable", "ShapeSettings", "Shaper", "Shapes")

KeyTable = Mapping[int, GuestVirtual]
"""The target that each index of a site's key had last; indices that never came are left out."""


class FormChoice(StrEnum):
    """How the form of a site with several targets is chosen."""

    AUTO = "auto"
    """The cheapest by the cost model."""
    CHAIN = "chain"
    TREE = "tree"
    KEYED = "keyed"
    """By key where the site has one and its table is known; elsewhere as ``AUTO``."""


SHAPE_RANGES: dict[str, tuple[float, float]] = {
    "chain_targets_max": (2, MAX_TARGETS),
    "tree_targets_max": (2, MAX_TARGETS),
    "min_saving_share": (0.0, 0.9),
}
"""The least and the most of each."""


@dataclass(frozen=True, slots=True)
class ShapeSettings:
    """The choice of form.

    :raise SettingError: A value is out of :data:`SHAPE_RANGES`, or no :class:`FormChoice`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    form: FormChoice = FormChoice.AUTO
    """The form of sites with several targets; one target is always a chain."""
    chain_targets_max: int = 8
    """The longest chain."""
    tree_targets_max: int = 16
    """The most targets of a tree of either kind."""
    min_saving_share: float = 0.08
    """What a form must save of a retpoline's cycles; where none does, a site is left alone."""

    def __post_init__(self) -> None:
        if self.form not in tuple(FormChoice):
            raise SettingError("form", self.form, f"one of {', '.join(FormChoice)}")
        check_ranges(self, SHAPE_RANGES)


class Shaper:
    """The choice of form, by settings and costs."""

    def __init__(self, settings: ShapeSettings | None = None, costs: Costs | None = None) -> None:
        self.settings = s = settings or ShapeSettings()
        self.costs = costs or Costs()
        most = {
            FormChoice.CHAIN: s.chain_targets_max,
            FormChoice.TREE: s.tree_targets_max,
        }
        self.targets_max = most.get(s.form, max(most.values()))
        """The most targets that any form may have."""

    def saving(self, shares: Sequence[Share]) -> float:
        """What the cheapest form without a key saves of a retpoline's cycles, as a share of them.

        Below 0 where it costs more.

        :param shares: The targets, hottest first, of which there are 1 to :attr:`targets_max`.
        """
        return 1.0 - min(self._offers(shares))[0] / self.costs.retpoline_cycles

    def pays(self, shares: Sequence[Share], *, keyed: bool = False) -> bool:
        """Whether these targets, hottest first, are worth a form.

        Several targets always are where the settings name a tree that can be had: whoever names it
        wants to see it.

        :param keyed: Whether a tree by key can be had.
        """
        if not 0 < len(shares) <= self.targets_max:
            return False
        choice = self.settings.form
        named = choice is FormChoice.TREE or (choice is FormChoice.KEYED and keyed)
        if named and len(shares) > 1:
            return True
        most = self.costs.retpoline_cycles * (1.0 - self.settings.min_saving_share)
        return any(cycles <= most for cycles, _ in self._offers(shares))

    def shape(
        self, shares: Sequence[Share], key: Key | None = None, table: KeyTable | None = None
    ) -> Form:
        """The form of these targets: what the settings name where it can be, else the cheapest.

        Whether it pays is not asked again: whoever named the targets has decided that.

        :param shares: The targets, hottest first; ``ORIGINAL`` for none.
        :param key: What the site declared as its key.
        :param table: What was learned of it.
        """
        if not shares:
            return ORIGINAL
        shares = shares[: self.targets_max]
        keyed = self._keyed(shares, key, table or {})
        if keyed is not None and self.settings.form is FormChoice.KEYED:
            return keyed
        targets = tuple([target for target, _ in shares])
        cycles, choice = min(self._offers(shares))
        if keyed is not None and self.settings.form is FormChoice.AUTO:
            least = self.costs.keyed(shares, keyed.key, keyed.leaves)
            if least < cycles:
                return keyed
        return Tree(targets) if choice is FormChoice.TREE else Chain(targets)

    def _offers(self, shares: Sequence[Share]) -> Iterator[tuple[float, FormChoice]]:
        """Cycles a call in each form that needs no key and may be had; there is at least one."""
        s, number = self.settings, len(shares)
        if number == 1 or (number <= s.chain_targets_max and s.form is not FormChoice.TREE):
            yield self.costs.chain([share for _, share in shares]), FormChoice.CHAIN
        if 1 < number <= s.tree_targets_max and s.form is not FormChoice.CHAIN:
            yield self.costs.tree(shares), FormChoice.TREE

    def _keyed(self, shares: Sequence[Share], key: Key | None, table: KeyTable) -> Keyed | None:
        if key is None or len(shares) < 2 or len(shares) > self.settings.tree_targets_max:
            return None
        wanted = {target for target, _ in shares}
        indices = 1 << key.bits
        leaves = [(i, t) for i, t in table.items() if t in wanted and 0 <= i < indices]
        return Keyed(key, tuple(leaves)) if leaves else None


class Shapes:
    """What a strategy asks for, and what is made of it, site by site.

    Deterministic, and forgotten with the daemon: it says only how to read the decisions of this
    run.  The order of an epoch is :meth:`counted`, :meth:`installed`, the strategy's ``decide``,
    :meth:`made`.
    """

    def __init__(self, shaper: Shaper) -> None:
        self._shaper = shaper
        self._keys: dict[GuestVirtual, Key] = {}
        self._tables: dict[GuestVirtual, KeyTable] = {}
        self._pairs: dict[GuestVirtual, tuple[Form, Form]] = {}
        """What was asked for, and what was made of it, where the two differ."""

    def declare(self, keys: Mapping[GuestVirtual, Key]) -> None:
        """Sites that declare a key, before the strategy first hears of them."""
        self._keys.update(keys)

    def forget(self, sites: Iterable[GuestVirtual]) -> None:
        """Sites that went with a module."""
        for site in sites:
            for memory in (self._keys, self._tables, self._pairs):
                memory.pop(site, None)

    def counted(
        self,
        counts: Mapping[GuestVirtual, SiteEpoch],
        tables: Mapping[GuestVirtual, KeyTable],
    ) -> dict[GuestVirtual, SiteEpoch]:
        """The counts for the strategy's snapshot, and a memory of the tables.

        :param tables: What stands in the key tables of the sites where ``LearnKeys`` stands; only
            targets that may be called directly.
        """
        self._tables.update(tables)
        filled = dict(counts)
        for site, table in tables.items():
            if site in filled:
                filled[site] = replace(fill_in(filled[site], table), keyed=True)
        return filled

    def installed(self, forms: Mapping[GuestVirtual, Form]) -> dict[GuestVirtual, Form]:
        """What stands at each site, in the words of the strategy that asked for it."""
        told = dict(forms)
        for site, (asked, made) in self._pairs.items():
            if told.get(site) == made:
                told[site] = asked
        return told

    def made(self, decision: Decision) -> dict[GuestVirtual, Form]:
        """The forms that the sites of ``decision.wanted`` are to have."""
        forms: dict[GuestVirtual, Form] = {}
        for site, asked in decision.wanted.items():
            forms[site] = self._make(site, asked, decision.shares.get(site))
            if forms[site] == asked:
                self._pairs.pop(site, None)
            else:
                self._pairs[site] = (asked, forms[site])
        return forms

    def _make(self, site: GuestVirtual, asked: Form, shares: Sequence[Share] | None) -> Form:
        key = self._keys.get(site)
        if asked == LEARNING and key is not None:
            return LearnKeys(key)
        if shares is None:
            return asked
        return self._shaper.shape(shares, key, self._tables.get(site))


def fill_in(seen: SiteEpoch, table: KeyTable) -> SiteEpoch:
    """Name the calls that found no slot by the key table: a record has 7 slots a CPU, a table 64.

    A call writes its target to the table whether it finds a slot or not, so the calls without one
    went to the targets that only the table has.  Which of them how often nobody counted: all alike.
    """
    absent = sorted(set(table.values()) - seen.calls.keys())
    if not absent or seen.other <= 0:
        return seen
    each, more = divmod(seen.other, len(absent))
    calls = dict(seen.calls)
    calls.update({target: each + (rank < more) for rank, target in enumerate(absent)})
    return SiteEpoch(calls, 0, seen.hits)
