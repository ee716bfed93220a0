"""Chooses the form of a site's targets: chain, tree by target, or tree by key.

A strategy decides which targets are worth a direct branch, and names them as a chain.  A
:class:`Shaper` finds the form that is the cheapest by the cost model, or that the settings name; a
strategy may ask it whether a chain pays at all.  :class:`Shapes` translates between the strategy's
chains and the forms in the text of the guest, both ways.
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
"""The target that each index of a site's key had last; an index that never came is absent."""


class FormChoice(StrEnum):
    """How the form of a site with several targets is chosen."""

    AUTO = "auto"
    """The cheapest by the cost model."""
    CHAIN = "chain"
    TREE = "tree"
    KEYED = "keyed"
    """By key if the site has one and its table is known; else as ``AUTO``."""


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
    """The share of a retpoline's cycles that a form must save; else the site is left alone."""

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
        """Return the share of a retpoline's cycles that the cheapest form without a key saves.

        It is below 0 if the form costs more.

        :param shares: The targets, 1 to :attr:`targets_max`, hottest first.
        """
        return 1.0 - min(self._offers(shares))[0] / self.costs.retpoline_cycles

    def pays(self, shares: Sequence[Share], *, keyed: bool = False) -> bool:
        """Return whether these targets, hottest first, are worth a form.

        Several targets always are, if the settings name a tree that is possible: the operator who
        names a tree wants it.

        :param keyed: Whether a tree by key is possible.
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
        """Return the form of these targets: the one that the settings name, else the cheapest.

        It does not check again whether the form pays, because the strategy has decided that.

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
        """Yield the cycles a call in each possible form without a key; there is at least one."""
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
    """What a strategy asks for, and the form that is made of it, site by site.

    It is deterministic and is not saved, because it only translates the decisions of this run.
    The order of an epoch is :meth:`counted`, :meth:`installed`, the strategy's ``decide``,
    :meth:`made`.
    """

    def __init__(self, shaper: Shaper) -> None:
        self._shaper = shaper
        self._keys: dict[GuestVirtual, Key] = {}
        self._tables: dict[GuestVirtual, KeyTable] = {}
        self._pairs: dict[GuestVirtual, tuple[Form, Form]] = {}
        """What was asked for, and the form that was made of it, if they differ."""

    def use_shaper(self, shaper: Shaper) -> None:
        """Use another shaper from now on; forms that were made stay."""
        self._shaper = shaper

    def declare(self, keys: Mapping[GuestVirtual, Key]) -> None:
        """Add sites that declare a key; call it before the strategy gets them."""
        self._keys.update(keys)

    def drop_sites(self, sites: Iterable[GuestVirtual]) -> None:
        """Drop sites whose module was unloaded."""
        for site in sites:
            for memory in (self._keys, self._tables, self._pairs):
                memory.pop(site, None)

    def counted(
        self,
        counts: Mapping[GuestVirtual, SiteEpoch],
        tables: Mapping[GuestVirtual, KeyTable],
    ) -> dict[GuestVirtual, SiteEpoch]:
        """Return the counts for the strategy's snapshot, and keep the tables.

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
        """Return what stands at each site, in the terms of the strategy that asked for it."""
        told = dict(forms)
        for site, (asked, made) in self._pairs.items():
            if told.get(site) == made:
                told[site] = asked
        return told

    def made(self, decision: Decision) -> dict[GuestVirtual, Form]:
        """Return the forms that the sites of ``decision.wanted`` are to have."""
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
    """Assign the calls that found no slot by the key table: a record has 7 slots a CPU, a table 64.

    A call writes its target to the table even if it finds no slot, so the calls without a slot went
    to the targets that only the table has.  Their counts are unknown: each gets the same.
    """
    absent = sorted(set(table.values()) - seen.calls.keys())
    if not absent or seen.other <= 0:
        return seen
    each, more = divmod(seen.other, len(absent))
    calls = dict(seen.calls)
    calls.update({target: each + (rank < more) for rank, target in enumerate(absent)})
    return SiteEpoch(calls, 0, seen.hits)
