"""What there is in a guest: symbols, text, sites.  Reads only."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from optpolined.addresses import GuestVirtual
from optpolined.api.refusal import Refusal
from optpolined.config import PolicyConfig
from optpolined.kernel.module.attachment import Attachment
from optpolined.kernel.module.module_list import GuestModule
from optpolined.kernel.sites.declarations import read_declarations
from optpolined.kernel.sites.declared_inline import with_inline_parts
from optpolined.kernel.sites.exclusions import TextRange, discover
from optpolined.kernel.sites.scan import Site, scan, with_originals
from optpolined.kernel.sites.static_calls import StaticCall
from optpolined.kernel.sites.thunks import Thunks
from optpolined.kernel.symbols.symbols import Symbols
from optpolined.patching.static_calls import changeable, find_static_calls
from optpolined.session.text import TextRegion, read_text, text_regions

__all__ = ("Inventory", "ModuleChange", "Survey")

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Inventory:
    """Every site that was found, by its address."""

    eligible: dict[GuestVirtual, Site] = field(default_factory=dict)
    reasons: dict[GuestVirtual, Refusal] = field(default_factory=dict)
    """Why each of the others is left alone."""
    withheld: dict[GuestVirtual, Site] = field(default_factory=dict)
    """Those of the others that only the policy keeps us from."""

    @property
    def skipped(self) -> Counter[str]:
        """The sites that are left alone, counted by reason."""
        return Counter[str](self.reasons.values())

    @property
    def found(self) -> int:
        """All sites, eligible or not."""
        return len(self.eligible) + len(self.reasons)

    def drop_range(self, start: GuestVirtual, size: int) -> list[GuestVirtual]:
        """Drop the sites in ``size`` bytes from ``start`` on; return those that were eligible."""
        went = [site for site in self.eligible if start <= site < start + size]
        for sites in (self.eligible, self.reasons, self.withheld):
            for site in [site for site in sites if start <= site < start + size]:
                del sites[site]
        return went


@dataclass(frozen=True, slots=True)
class ModuleChange:
    """The sites that came and went with their modules."""

    came: Sequence[GuestVirtual]
    went: Sequence[GuestVirtual]


class Survey:
    """A guest's symbols, its text as it stood when it was first seen, and its sites."""

    def __init__(
        self,
        attachment: Attachment,
        modules: Sequence[GuestModule],
        policy: PolicyConfig,
        originals: Mapping[GuestVirtual, bytes],
        *,
        symbols: Symbols | None = None,
    ) -> None:
        """Read the guest's text, and its symbols unless given, and find its sites.

        :param originals: The instructions that the poke table holds.  A site that is patched now,
            by us or by a daemon that died, is still a site.
        :raise KernelError: the guest's symbols or page tables make no sense.
        :raise QemuError: its memory cannot be read at all.
        """
        self._attachment = attachment
        self._policy = policy
        self.symbols = symbols or Symbols.load(attachment.space, attachment.vmcoreinfo)
        self.inventory = Inventory()
        self.texts: dict[TextRegion, bytes] = {}
        self.static_calls: Mapping[str, StaticCall] = {}
        self._said = ""
        self.set_modules(modules, originals)

    def set_modules(
        self, modules: Sequence[GuestModule], originals: Mapping[GuestVirtual, bytes]
    ) -> ModuleChange:
        """Find the sites that came and went with modules; raises as the constructor."""
        space, header = self._attachment.space, self._attachment.header
        self.symbols.set_modules(space, modules)
        now = text_regions(self.symbols, modules, header)
        went = self._drop_regions(region for region in list(self.texts) if region not in now)
        texts = read_text(space, (region for region in now if region not in self.texts))
        came = self._scan(
            {
                region: with_originals(text, region.base, originals)
                for region, text in texts.items()
            },
            originals,
        )
        # A static call that a daemon before us has set is not where it was built to go.
        built = {
            place.address: place.original
            for call in self.static_calls.values()
            for place in call.places
        }
        for region, text in texts.items():
            self.texts[region] = with_originals(text, region.base, built)
        return ModuleChange(came, went)

    def text_at(self, address: GuestVirtual, size: int) -> bytes:
        """Return original text; nothing where not all of it lies in one region."""
        for region, text in self.texts.items():
            start = address - region.base
            if 0 <= start <= len(text) - size:
                return text[start : start + size]
        return b""

    def _drop_regions(self, regions: Iterable[TextRegion]) -> list[GuestVirtual]:
        went = []
        for region in regions:
            del self.texts[region]
            went += self.inventory.drop_range(region.base, region.size)
        return went

    def admit(self, policy: PolicyConfig) -> list[GuestVirtual]:
        """Make eligible what another policy lets in.

        What it refuses stays eligible, because it may be patched now: the overrides put it back.
        """
        self._policy = policy
        inventory = self.inventory
        came = [
            address
            for address, site in inventory.withheld.items()
            if policy.refusal(site.function, site.module) is None
        ]
        for address in came:
            inventory.eligible[address] = inventory.withheld.pop(address)
            del inventory.reasons[address]
        return came

    def _scan(
        self, texts: Mapping[TextRegion, bytes], originals: Mapping[GuestVirtual, bytes]
    ) -> list[GuestVirtual]:
        """Find the sites of each region, and sort them by what may be done with them."""
        space, header = self._attachment.space, self._attachment.header
        declared = read_declarations(space, self.symbols.runs)
        calls, unlike = find_static_calls(declared.records, space, self.symbols, originals)
        refused = [*declared.refused, *unlike]
        own_end = GuestVirtual(header.module_text + header.module_text_size)
        own = TextRange(header.module_text, own_end)
        exclusions = discover(self.symbols.addresses, space.read, own)
        self.static_calls, unlike = changeable(calls, self.symbols, exclusions)
        refused += unlike
        thunks = Thunks.one_array(header.thunk)
        came = []
        for region, text in texts.items():
            functions = self.symbols.functions_in(region.base, region.size)
            found = scan(text, region.base, thunks, functions)
            for rejected in found.rejected:
                _log.warning(
                    "bytes at %#x look like a site: %s",
                    rejected.address,
                    rejected.reason,
                    extra={"site": f"{rejected.address:#x}", "reason": rejected.reason},
                )
            sites, unlike = with_inline_parts(
                found.sites, declared.records, text, region.base, thunks
            )
            refused += unlike
            for site in sites:
                reason = exclusions.reason(site)
                refusal = reason or self._policy.refusal(site.function, region.module)
                if refusal is None:
                    self.inventory.eligible[site.address] = site
                    came.append(site.address)
                    continue
                self.inventory.reasons[site.address] = refusal
                if reason is None:
                    self.inventory.withheld[site.address] = site
        self._say(refused)
        return came

    def _say(self, refused: Sequence[str]) -> None:
        """Warn of declarations that are not believed: one line, and not the same one again."""
        if not refused:
            return
        more = f" (and {len(refused) - 1} more such)" if len(refused) > 1 else ""
        line = refused[0] + more
        if line != self._said:
            self._said = line
            _log.warning("%s", line)
