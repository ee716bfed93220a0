"""Sites that the operator has decided about: pinned to a target, or banned.

:class:`Overridden` wraps a strategy.  A site with an override leaves the strategy, as if its module
were unloaded, and comes back as a new one when the override is dropped.  So no strategy knows of
pins and bans, and a site that comes back learns from nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Generic, Literal, NamedTuple, TypeVar

from pydantic import ConfigDict, TypeAdapter

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import ORIGINAL, Chain, Form
from optpolined.learning.state import load_json
from optpolined.learning.strategy import Decision, SiteStatus, Snapshot, Strategy

__all__ = ("BANNED", "PINNED", "Overridden", "OverriddenState", "Override")

StateT = TypeVar("StateT")

PINNED = "pinned"
BANNED = "banned"


class Override(NamedTuple):
    """The operator's decision about a site."""

    target: GuestVirtual | None
    """The only target of a pinned site; ``None``: the site is banned."""
    reason: str
    """One short line."""

    @property
    def form(self) -> Form:
        """The form that the site is to have."""
        return ORIGINAL if self.target is None else Chain((self.target,))

    @property
    def state(self) -> str:
        """The name of the site's state."""
        return BANNED if self.target is None else PINNED


@dataclass(frozen=True, slots=True)
class OverriddenState(Generic[StateT]):
    """The strategy's own state, and the overrides, which it does not know."""

    inner: StateT
    overrides: Mapping[GuestVirtual, Override] = field(default_factory=dict)
    untold: frozenset[GuestVirtual] = frozenset()
    """Sites whose override was set, changed or dropped since the last decision."""


@dataclass(frozen=True, slots=True)
class _Dump:
    """A :class:`OverriddenState` in JSON."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    version: Literal[1]
    inner: str
    overrides: dict[GuestVirtual, Override]
    untold: frozenset[GuestVirtual]


_JSON = TypeAdapter(_Dump)


class Overridden(Generic[StateT]):
    """A :class:`Strategy` that obeys the overrides, and asks another one about all other sites."""

    def __init__(self, strategy: Strategy[StateT]) -> None:
        self.strategy = strategy

    def initial(self, sites: Iterable[GuestVirtual]) -> OverriddenState[StateT]:
        return OverriddenState(self.strategy.initial(sites))

    def set_overrides(
        self, state: OverriddenState[StateT], overrides: Mapping[GuestVirtual, Override]
    ) -> OverriddenState[StateT]:
        """Replace the overrides; the next decision has what changes.

        :param overrides: For sites of the strategy only.
        """
        before = state.overrides
        changed = {
            site for site in {**before, **overrides} if before.get(site) != overrides.get(site)
        }
        if not changed:
            return state
        inner = self.strategy.drop_sites(state.inner, overrides.keys() - before.keys())
        inner = self.strategy.add_sites(inner, before.keys() - overrides.keys())
        return OverriddenState(inner, dict(overrides), state.untold | changed)

    def add_sites(
        self, state: OverriddenState[StateT], sites: Iterable[GuestVirtual]
    ) -> OverriddenState[StateT]:
        new = [site for site in sites if site not in state.overrides]
        return replace(state, inner=self.strategy.add_sites(state.inner, new))

    def drop_sites(
        self, state: OverriddenState[StateT], sites: Iterable[GuestVirtual]
    ) -> OverriddenState[StateT]:
        gone = frozenset(sites)
        return OverriddenState(
            self.strategy.drop_sites(state.inner, gone),
            {site: override for site, override in state.overrides.items() if site not in gone},
            state.untold - gone,
        )

    def decide(
        self, state: OverriddenState[StateT], snapshot: Snapshot
    ) -> tuple[OverriddenState[StateT], Decision]:
        inner, decision = self.strategy.decide(state.inner, snapshot)
        if not state.untold:
            return (state if inner is state.inner else replace(state, inner=inner)), decision
        told = self.strategy.site_statuses(inner) if state.untold - state.overrides.keys() else {}
        wanted, states, reasons = (
            dict(decision.wanted),
            dict(decision.states),
            dict(decision.reasons),
        )
        for site in sorted(state.untold):
            override = state.overrides.get(site)
            if override is not None:
                wanted[site], states[site], reasons[site] = (
                    override.form,
                    override.state,
                    override.reason,
                )
            else:
                free = told[site]
                wanted[site], states[site], reasons[site] = free.wanted, free.state, free.reason
        return (
            OverriddenState(inner, state.overrides),
            Decision(wanted, decision.shares, states, reasons),
        )

    def wanted(self, state: OverriddenState[StateT]) -> Mapping[GuestVirtual, Form]:
        forms = {site: override.form for site, override in state.overrides.items()}
        overridden = {site: form for site, form in forms.items() if form != ORIGINAL}
        return {**self.strategy.wanted(state.inner), **overridden}

    def site_statuses(self, state: OverriddenState[StateT]) -> Mapping[GuestVirtual, SiteStatus]:
        overridden = {
            site: SiteStatus(override.state, override.reason, override.form)
            for site, override in state.overrides.items()
        }
        return {**self.strategy.site_statuses(state.inner), **overridden}

    def dump(self, state: OverriddenState[StateT]) -> str:
        inner = self.strategy.dump(state.inner)
        return _JSON.dump_json(_Dump(1, inner, dict(state.overrides), state.untold)).decode()

    def load(self, text: str) -> OverriddenState[StateT]:
        dumped = load_json(_JSON, text, "a strategy with overrides")
        return OverriddenState(self.strategy.load(dumped.inner), dumped.overrides, dumped.untold)
