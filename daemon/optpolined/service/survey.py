"""What there is in a guest: symbols, text, sites.  Reads only."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from optpolined.addresses import GuestVirtual
from optpolined.config import PolicyConfig
from optpolined.kernel.attach import Attachment
from optpolined.kernel.exclusions import Exclusions, TextRange, discover
from optpolined.kernel.modules import GuestModule
from optpolined.kernel.sites import Site, scan, with_originals
from optpolined.kernel.symbols import Symbols
from optpolined.service.text import TextRegion, read_text, text_regions
from optpolined.x86 import Register

__all__ = ("Inventory", "Survey", "survey")

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Inventory:
    """Every site that was found; ``eligible`` by address, ``skipped`` counted by reason."""

    eligible: dict[GuestVirtual, Site] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def found(self) -> int:
        """All sites, eligible or not."""
        return len(self.eligible) + self.skipped.total()


@dataclass(frozen=True, slots=True)
class Survey:
    """A guest's symbols, its text as it stood at attach, and its sites."""

    symbols: Symbols
    regions: Sequence[TextRegion]
    texts: Mapping[TextRegion, bytes]
    inventory: Inventory


def survey(
    attachment: Attachment,
    modules: Sequence[GuestModule],
    policy: PolicyConfig,
    originals: Mapping[GuestVirtual, bytes],
) -> Survey:
    """Read the guest's symbols and text, and find its sites.

    ``originals`` are the instructions that the poke table holds: a site that is patched now, by us
    or by a daemon that died, is a site all the same.

    :raise KernelError: the guest's symbols or page tables make no sense.
    :raise QemuError: its memory cannot be read at all.
    """
    space, header = attachment.space, attachment.header
    symbols = Symbols.load(space, attachment.vmcoreinfo)
    symbols.set_modules(space, modules)
    own = TextRange(header.module_text, GuestVirtual(header.module_text + header.module_text_size))
    exclusions = discover(symbols.addresses, space.read, own)
    regions = text_regions(symbols, modules, header)
    texts = read_text(space, regions)
    thunks = {address: register for register, address in header.thunk.items()}
    inventory = _inventory(_with_originals(texts, originals), symbols, exclusions, policy, thunks)
    return Survey(symbols, regions, texts, inventory)


def _with_originals(
    texts: Mapping[TextRegion, bytes], originals: Mapping[GuestVirtual, bytes]
) -> dict[TextRegion, bytes]:
    return {region: with_originals(text, region.base, originals) for region, text in texts.items()}


def _inventory(
    texts: Mapping[TextRegion, bytes],
    symbols: Symbols,
    exclusions: Exclusions,
    policy: PolicyConfig,
    thunks: Mapping[GuestVirtual, Register],
) -> Inventory:
    """Sort the sites of each region by what may be done with them."""
    inventory = Inventory()
    for region, text in texts.items():
        functions = symbols.functions_in(region.base, region.size)
        found = scan(text, region.base, thunks, functions)
        for rejected in found.rejected:
            _log.warning("bytes at %#x look like a site: %s", rejected.address, rejected.reason)
        for site in found.sites:
            reason = exclusions.reason(site) or policy.refusal(site.function, region.module)
            if reason:
                inventory.skipped[str(reason)] += 1
            else:
                inventory.eligible[site.address] = site
    return inventory
