"""Sites and functions by the names that the operator gives them.

A site is ``function+0x1f``, as the status prints it; a function of a module is
``function [module]`` or ``module:function``.  An address in hexadecimal names either.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from optpolined.addresses import GuestVirtual
from optpolined.api.refusal import Refusal
from optpolined.errors import OptpolinedError
from optpolined.kernel.sites.scan import Site
from optpolined.kernel.symbols.site_name import SiteName
from optpolined.kernel.symbols.symbols import Function, Symbols

__all__ = ("NameRefusedError", "Names", "is_site_name")

_ADDRESS = re.compile(r"0x[0-9a-f]{1,16}", re.IGNORECASE)
_SHOWN = 8


class NameRefusedError(OptpolinedError):
    """A name with no meaning, or more than one, in this guest; the message says which."""


def is_site_name(text: str) -> bool:
    """Return whether ``text`` can name one site, rather than functions that hold sites."""
    return bool(_ADDRESS.fullmatch(text)) or "+" in text


class Names:
    """The names of one guest as it is now.

    ``sites`` may be patched, and ``reasons`` say why other sites are left alone.  ``is_target``
    returns whether a function may be called directly.
    """

    def __init__(
        self,
        symbols: Symbols,
        sites: Mapping[GuestVirtual, Site],
        reasons: Mapping[GuestVirtual, Refusal],
        is_target: Callable[[GuestVirtual], bool],
    ) -> None:
        self.sites = sites
        self._symbols = symbols
        self._reasons = reasons
        self._is_target = is_target

    def site(self, text: str) -> GuestVirtual:
        """Return the site that ``text`` names.

        :raise NameRefusedError: it names no site, or more than one, or one that is left alone.
        """
        if _ADDRESS.fullmatch(text):
            return self._known(text, [GuestVirtual(int(text, 16))])
        name = _parsed(text)
        functions = self._functions(name)
        if name.offset is not None:
            return self._known(text, [GuestVirtual(at.start + name.offset) for at in functions])
        inside = [
            site
            for site in (*self.sites, *self._reasons)
            if any(0 <= site - at.start < at.size for at in functions)
        ]
        return self._known(text, inside)

    def target(self, text: str) -> GuestVirtual:
        """Return the function that ``text`` names.

        :raise NameRefusedError: it names no function, or more than one, or one that must not be
            called directly, as those of optpoline.ko.
        """
        if _ADDRESS.fullmatch(text):
            found = [GuestVirtual(int(text, 16))]
        else:
            found = self._entries(_parsed(text))
        if len(found) > 1:
            raise NameRefusedError(f"the guest has {len(found)} functions {text}: {_list(found)}")
        if not self._is_target(found[0]):
            raise NameRefusedError(f"{text}: no function that may be called begins there")
        return found[0]

    def name(self, address: GuestVirtual) -> str:
        """Return the name of a function, or its address where the name is not the only one."""
        name = self._symbols.site_name(address)
        if name is not None and not name.offset:
            name = replace(name, offset=None)
        return self._own_name(address, name)

    def site_name(self, address: GuestVirtual) -> str:
        """Return the name of a site, or its address where the name is not the only one."""
        return self._own_name(address, self._symbols.site_name(address))

    def _site_list(self, sites: Sequence[GuestVirtual]) -> str:
        more = ", ..." if len(sites) > _SHOWN else ""
        return ", ".join(map(self.site_name, sites[:_SHOWN])) + more

    def _own_name(self, address: GuestVirtual, name: SiteName | None) -> str:
        """Return the text of ``name`` if it means ``address`` and nothing else."""
        if name is not None and name.is_readable and self._entries(name) == [address]:
            return str(name)
        return f"{address:#x}"

    def _entries(self, name: SiteName) -> list[GuestVirtual]:
        """Return each address that ``name`` means; without an offset, where functions begin.

        :raise NameRefusedError: no function has that name.
        """
        return [GuestVirtual(at.start + (name.offset or 0)) for at in self._functions(name)]

    def _functions(self, name: SiteName) -> Sequence[Function]:
        """Return the functions that ``name`` means; one without a module means any module's.

        :raise NameRefusedError: no function has that name.
        """
        found = [
            function
            for function in self._symbols.entries(name.function)
            if name.module is None or function.module == name.module
        ]
        if not found:
            where = f" in the module {name.module}" if name.module else ""
            raise NameRefusedError(f"the guest has no function {name.function}{where}")
        return found

    def _known(self, text: str, places: Sequence[GuestVirtual]) -> GuestVirtual:
        """Return the only one of ``places`` that is a site."""
        found = [place for place in places if place in self.sites]
        if len(found) == 1:
            return found[0]
        if found:
            shown = self._site_list(found)
            raise NameRefusedError(f"{text} may be any of {len(found)} sites: {shown}")
        refused = {self._reasons[place] for place in places if place in self._reasons}
        if refused:
            why = "; ".join(f"{reason}, because {reason.meaning}" for reason in sorted(refused))
            raise NameRefusedError(f"{text} is left alone: {why}")
        raise NameRefusedError(f"{text}: there is no indirect call there that goes through a thunk")


def _parsed(text: str) -> SiteName:
    name = SiteName.parse(text)
    if name is None:
        raise NameRefusedError(f"{text!r}: name it function+0x1f, or by its address in hexadecimal")
    return name


def _list(addresses: Sequence[GuestVirtual]) -> str:
    more = ", ..." if len(addresses) > _SHOWN else ""
    return ", ".join(f"{address:#x}" for address in addresses[:_SHOWN]) + more
