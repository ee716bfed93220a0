"""What people have decided about sites: pins and bans, from the configuration or while we run.

They are kept by name, so that they outlive a reset of the guest, which moves its kernel, and a
module that goes and comes back.  A pattern holds for modules that come later too.  Where a site is
both pinned and banned, it is banned.

A reverted site is banned until it is relearned.  A standstill holds for all sites: nothing is
changed in it, or all of them are put back and stay so.
"""

import logging
from collections.abc import Sequence

from optpolined.addresses import GuestVirtual
from optpolined.config import PolicyConfig, matches
from optpolined.control.names import NameRefusedError, Names, is_site_name
from optpolined.control.override_file import SavedOverrides, Standstill
from optpolined.kernel.sites.scan import Site
from optpolined.learning.overridden import Override

__all__ = ("Overrides",)

_log = logging.getLogger(__name__)


_REVERTED = "reverted by hand: relearn lets it learn again"


class Overrides:
    """The pins, the bans and the patterns that hold now."""

    def __init__(self, policy: PolicyConfig) -> None:
        self._said: set[str] = set()
        self._reverted: list[str] = []
        self.standstill = Standstill.NONE
        self.adopt(policy)

    def adopt(self, policy: PolicyConfig) -> None:
        """Begin anew from a configuration: what was asked for since the last one is forgotten."""
        self.policy = policy
        self._pins = dict(policy.pins)
        self._bans = list(policy.bans)

    def saved_overrides(self) -> SavedOverrides:
        """All that holds now."""
        return SavedOverrides(
            self.policy, dict(self._pins), list(self._bans), list(self._reverted), self.standstill
        )

    def obey(self, saved_overrides: SavedOverrides) -> None:
        """Go on by the orders of a daemon that died.

        Pins and bans that stood on another policy are forgotten, as where that changes while we
        run.
        """
        self._reverted = list(saved_overrides.reverted)
        self.standstill = saved_overrides.standstill
        if saved_overrides.policy == self.policy:
            self._pins = dict(saved_overrides.pins)
            self._bans = list(saved_overrides.bans)

    def pin(self, names: Names, site: str, target: str) -> str:
        """Give a site one target for good; answer what was done.

        :raise NameRefusedError: it cannot be: a name means nothing, or the site is banned.
        """
        where, goes = names.site(site), names.target(target)
        ban = self._ban_of(names, where)
        if ban is not None:
            raise NameRefusedError(f"{site} is banned by {ban!r}: unban that first")
        self._drop_pin(names, where)
        site, target = names.site_name(where), names.name(goes)
        if site in self._reverted:
            self._reverted.remove(site)
        self._pins[site] = target
        return f"{site} is pinned to {target}"

    def unpin(self, names: Names, site: str) -> str:
        """Let a site learn again; answer what was done.

        :raise NameRefusedError: it is not pinned.
        """
        if self._pins.pop(site, None) is None:  # it may be in a module that has gone
            where = names.site(site)
            if not self._drop_pin(names, where):
                raise NameRefusedError(f"{site} is not pinned")
        return f"{site} is not pinned any more, and learns"

    def ban(self, names: Names, what: str) -> str:
        """Put a site, or all sites of the functions that match, back for good.

        :raise NameRefusedError: what looks like a site is none.
        """
        if is_site_name(what):
            what = names.site_name(names.site(what))
            self._add_ban(what)
            return f"{what} is banned"
        self._add_ban(what)
        count = sum(_matching(site, [what]) is not None for site in names.sites.values())
        return f"banned by {what!r}: {count} sites"

    def unban(self, names: Names, what: str) -> str:
        """Take back a ban, named as it was.

        :raise NameRefusedError: there is none of that name.
        """
        if what not in self._bans and is_site_name(what):
            what = names.site_name(names.site(what))
        if what not in self._bans:
            known = ", ".join(self._bans) or "none"
            raise NameRefusedError(f"{what} is not banned; bans: {known}")
        self._bans.remove(what)
        return f"not banned any more by {what!r}"

    def revert(self, names: Names, site: str) -> str:
        """Put a site back until it is relearned; answer what was done.

        :raise NameRefusedError: it cannot be: the name means no site, or the site is pinned.
        """
        where = names.site(site)
        if self._pin_of(names, where) is not None:
            raise NameRefusedError(f"{site} is pinned: unpin it first")
        name = names.site_name(where)
        if name not in self._reverted:
            self._reverted.append(name)
        return f"{name} is put back; `relearn` lets it learn again"

    def relearn(self, names: Names, site: str) -> tuple[GuestVirtual, str]:
        """Let a site begin anew; answer which one, and what was done.

        :raise NameRefusedError: it cannot be: the name means no site, or somebody has decided about
            it.
        """
        where = names.site(site)
        if self._pin_of(names, where) is not None:
            raise NameRefusedError(f"{site} is pinned: unpin it first")
        ban = self._ban_of(names, where)
        if ban is not None:
            raise NameRefusedError(f"{site} is banned by {ban!r}: unban that first")
        name = names.site_name(where)
        if name in self._reverted:
            self._reverted.remove(name)
        return where, f"{name} learns from nothing"

    def freeze(self) -> str:
        """Change nothing from now on; answer what was done."""
        self.standstill = Standstill.FROZEN
        return "frozen: all sites stay as they are until `thaw`"

    def revert_all(self) -> str:
        """Put all sites back, and change nothing more; answer what was done."""
        self.standstill = Standstill.REVERTED
        return "all sites are put back, and stay so until `thaw`"

    def thaw(self) -> str:
        """Go on; answer what was done."""
        was, self.standstill = self.standstill, Standstill.NONE
        return "nothing is frozen" if was is Standstill.NONE else "thawed: sites are changed again"

    def overrides(self, names: Names) -> dict[GuestVirtual, Override]:
        """What holds for each site that somebody has decided about.

        Warns, once, of pins that mean nothing in this guest.
        """
        overrides = {}
        for site, target in self._pins.items():
            try:
                where, goes = names.site(site), names.target(target)
            except NameRefusedError as error:
                self._warn(f"the pin of {site} to {target} does not hold: {error}")
            else:
                overrides[where] = Override(goes, f"pinned to {names.name(goes)}")
        for site in self._reverted:
            try:
                overrides[names.site(site)] = Override(None, _REVERTED)
            except NameRefusedError as error:
                self._warn(f"that {site} was reverted does not hold: {error}")
        banned, patterns = self._split_bans(names)
        for address, found in names.sites.items():
            reason = self.policy.refusal(found.function, found.module)
            ban = banned.get(address) or _matching(found, patterns)
            if reason is not None:
                overrides[address] = Override(None, reason)
            elif ban is not None:
                overrides[address] = Override(None, f"banned by {ban!r}")
        return overrides

    def _split_bans(self, names: Names) -> tuple[dict[GuestVirtual, str], list[str]]:
        """The bans of one site, by its address, and the patterns."""
        sites: dict[GuestVirtual, str] = {}
        for ban in filter(is_site_name, self._bans):
            try:
                sites[names.site(ban)] = ban
            except NameRefusedError as error:
                self._warn(f"the ban of {ban} does not hold: {error}")
        return sites, [ban for ban in self._bans if not is_site_name(ban)]

    def _ban_of(self, names: Names, site: GuestVirtual) -> str | None:
        sites, patterns = self._split_bans(names)
        return sites.get(site) or _matching(names.sites[site], patterns)

    def _add_ban(self, what: str) -> None:
        if what not in self._bans:
            self._bans.append(what)

    def _pin_of(self, names: Names, site: GuestVirtual) -> str | None:
        """The name by which the site is pinned."""
        for name in self._pins:
            try:
                found = names.site(name)
            except NameRefusedError:
                continue
            if found == site:
                return name
        return None

    def _drop_pin(self, names: Names, site: GuestVirtual) -> bool:
        """Whether the site was pinned, by whatever name."""
        name = self._pin_of(names, site)
        if name is None:
            return False
        del self._pins[name]
        return True

    def _warn(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            _log.warning("%s", line)


def _matching(site: Site, patterns: Sequence[str]) -> str | None:
    """The first of ``patterns`` that means the function of ``site``."""
    name = f"{site.module}:{site.function}" if site.module else site.function
    return next((pattern for pattern in patterns if matches(name, [pattern])), None)
