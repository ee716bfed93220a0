"""The operator's commands over one attached guest.

Where a site is both pinned and banned, it is banned.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from optpolined.addresses import GuestVirtual
from optpolined.api.requests import Ban, Freeze, Pin, Relearn, Revert, Thaw, Unban, Unpin
from optpolined.api.status import OverriddenSite
from optpolined.config import PolicyConfig, matches
from optpolined.control.learner import Learner
from optpolined.control.names import NameRefusedError, Names, is_site_name
from optpolined.control.overrides import Overrides, Standstill
from optpolined.kernel.sites.scan import Site
from optpolined.learning.overridden import Override
from optpolined.session.survey import ModuleChange, Survey

__all__ = ("Operator", "OperatorCommand")

_log = logging.getLogger(__name__)

_SHOWN = 64

_REVERTED = "reverted by hand: relearn lets it learn again"

OperatorCommand = Pin | Unpin | Ban | Unban | Relearn | Freeze | Thaw | Revert
"""What the operator decides about sites."""


class Operator:
    """Carries out commands: changes the overrides, and hands what they mean to the learner."""

    def __init__(
        self,
        overrides: Overrides,
        survey: Survey,
        learner: Learner,
        names: Names,
        save: Callable[[Overrides], None] = lambda _: None,
    ) -> None:
        """Apply ``overrides``, which outlive the attachment, to the guest.

        :param save: Called with them after each change.
        """
        self._overrides = overrides
        self._save = save
        self._survey = survey
        self._learner = learner
        self._names = names
        self._warned: set[str] = set()
        self._by_site: dict[GuestVirtual, Override] = {}
        self.apply_overrides()

    @property
    def standstill(self) -> Standstill:
        """Whether learning stands still."""
        return self._overrides.standstill

    @property
    def by_site(self) -> Mapping[GuestVirtual, Override]:
        """What the overrides mean for the sites that the guest has now."""
        return self._by_site

    @property
    def pinned_sites(self) -> Collection[GuestVirtual]:
        """The sites that have the one target that the operator gave them."""
        return {site for site, override in self._by_site.items() if override.target is not None}

    def overridden_sites(self) -> tuple[OverriddenSite, ...]:
        """Return the first overridden sites by address, for the status."""
        symbols = self._survey.symbols
        return tuple(
            OverriddenSite(symbols.name(site), override.state, override.reason)
            for site, override in sorted(self._by_site.items())[:_SHOWN]
        )

    def apply_overrides(self) -> None:
        """Look the names up among the sites of now, and hand the result to the learner."""
        self._by_site = dict(self._resolved())
        self._learner.override_sites(self._by_site)

    def reload_policy(self, policy: PolicyConfig) -> None:
        """Use another policy from the next epoch on."""
        self._learner.follow_modules(ModuleChange(self._survey.admit(policy), ()))
        self._overrides.reload_policy(policy)
        self._save(self._overrides)
        self.apply_overrides()

    def carry_out(self, command: OperatorCommand) -> str:
        """Change the overrides, and return one line that says so; the next epoch changes sites.

        :raise NameRefusedError: a name has no meaning in this guest, or another override is in the
            way.  Nothing has changed.
        """
        says = self._change(command)
        self._save(self._overrides)
        self.apply_overrides()
        return says

    def _change(self, command: OperatorCommand) -> str:
        match command:
            case Freeze():
                says = self._freeze()
            case Thaw():
                says = self._thaw()
            case Revert(site=None):
                says = self._revert_all()
            case Revert(site=str(site)):
                says = self._revert(site)
            case Relearn(site=site):
                says = self._relearn(site)
            case Pin(site=site, target=target):
                says = self._pin(site, target)
            case Unpin(site=site):
                says = self._unpin(site)
            case Ban(what=what):
                says = self._ban(what)
            case Unban(what=what):
                says = self._unban(what)
        return says

    def _pin(self, site: str, target: str) -> str:
        names, overrides = self._names, self._overrides
        where, goes = names.site(site), names.target(target)
        self._check_not_banned(where, site)
        self._drop_pin(where)
        site, target = names.site_name(where), names.name(goes)
        if site in overrides.reverted:
            overrides.reverted.remove(site)
        overrides.pins[site] = target
        return f"{site} is pinned to {target}"

    def _unpin(self, site: str) -> str:
        if self._overrides.pins.pop(site, None) is None:  # its module may have been unloaded
            where = self._names.site(site)
            if not self._drop_pin(where):
                raise NameRefusedError(f"{site} is not pinned")
        return f"{site} is not pinned any more, and learns"

    def _ban(self, what: str) -> str:
        names = self._names
        if is_site_name(what):
            what = names.site_name(names.site(what))
            self._add_ban(what)
            return f"{what} is banned"
        self._add_ban(what)
        count = sum(_matching(site, [what]) is not None for site in names.sites.values())
        return f"banned by {what!r}: {count} sites"

    def _unban(self, what: str) -> str:
        bans = self._overrides.bans
        if what not in bans and is_site_name(what):
            what = self._names.site_name(self._names.site(what))
        if what not in bans:
            known = ", ".join(bans) or "none"
            raise NameRefusedError(f"{what} is not banned; bans: {known}")
        bans.remove(what)
        return f"not banned any more by {what!r}"

    def _revert(self, site: str) -> str:
        where = self._names.site(site)
        self._check_not_pinned(where, site)
        name = self._names.site_name(where)
        if name not in self._overrides.reverted:
            self._overrides.reverted.append(name)
        return f"{name} is put back; `relearn` lets it learn again"

    def _relearn(self, site: str) -> str:
        where = self._names.site(site)
        self._check_not_pinned(where, site)
        self._check_not_banned(where, site)
        name = self._names.site_name(where)
        if name in self._overrides.reverted:
            self._overrides.reverted.remove(name)
        self._learner.relearn(where)
        return f"{name} learns from nothing"

    def _freeze(self) -> str:
        self._overrides.standstill = Standstill.FROZEN
        return "frozen: all sites stay as they are until `thaw`"

    def _revert_all(self) -> str:
        self._overrides.standstill = Standstill.REVERTED
        return "all sites are put back, and stay so until `thaw`"

    def _thaw(self) -> str:
        before, self._overrides.standstill = self._overrides.standstill, Standstill.NONE
        if before is Standstill.NONE:
            return "nothing is frozen"
        return "thawed: sites are changed again"

    def _resolved(self) -> Iterator[tuple[GuestVirtual, Override]]:
        """Yield the override of each site; a later one replaces an earlier one.

        Logs one warning for each name that has no meaning in this guest.
        """
        names, overrides = self._names, self._overrides
        for site, target in overrides.pins.items():
            try:
                where, goes = names.site(site), names.target(target)
            except NameRefusedError as error:
                self._warn(f"the pin of {site} to {target} does not hold: {error}")
            else:
                yield where, Override(goes, f"pinned to {names.name(goes)}")
        for site in overrides.reverted:
            try:
                where = names.site(site)
            except NameRefusedError as error:
                self._warn(f"that {site} was reverted does not hold: {error}")
            else:
                yield where, Override(None, _REVERTED)
        banned, patterns = self._split_bans()
        for address, found in names.sites.items():
            reason = overrides.policy.refusal(found.function, found.module)
            ban = banned.get(address) or _matching(found, patterns)
            if reason is not None:
                yield address, Override(None, reason)
            elif ban is not None:
                yield address, Override(None, f"banned by {ban!r}")

    def _split_bans(self) -> tuple[dict[GuestVirtual, str], list[str]]:
        """Return the bans of one site, by its address, and the patterns."""
        sites: dict[GuestVirtual, str] = {}
        for ban in filter(is_site_name, self._overrides.bans):
            try:
                sites[self._names.site(ban)] = ban
            except NameRefusedError as error:
                self._warn(f"the ban of {ban} does not hold: {error}")
        return sites, [ban for ban in self._overrides.bans if not is_site_name(ban)]

    def _check_not_banned(self, where: GuestVirtual, site: str) -> None:
        sites, patterns = self._split_bans()
        ban = sites.get(where) or _matching(self._names.sites[where], patterns)
        if ban is not None:
            raise NameRefusedError(f"{site} is banned by {ban!r}: unban that first")

    def _check_not_pinned(self, where: GuestVirtual, site: str) -> None:
        if self._pin_of(where) is not None:
            raise NameRefusedError(f"{site} is pinned: unpin it first")

    def _add_ban(self, what: str) -> None:
        if what not in self._overrides.bans:
            self._overrides.bans.append(what)

    def _pin_of(self, site: GuestVirtual) -> str | None:
        """Return the name by which the site is pinned."""
        for name in self._overrides.pins:
            try:
                found = self._names.site(name)
            except NameRefusedError:
                continue
            if found == site:
                return name
        return None

    def _drop_pin(self, site: GuestVirtual) -> bool:
        """Unpin the site, whichever name it was pinned by; return whether it was pinned."""
        name = self._pin_of(site)
        if name is None:
            return False
        del self._overrides.pins[name]
        return True

    def _warn(self, line: str) -> None:
        if line not in self._warned:
            self._warned.add(line)
            _log.warning("%s", line)


def _matching(site: Site, patterns: Sequence[str]) -> str | None:
    """Return the first of ``patterns`` that matches the function of ``site``."""
    return next(
        (pattern for pattern in patterns if matches(site.home.pattern_name, [pattern])), None
    )
