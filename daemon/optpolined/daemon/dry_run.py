"""What would be attached to, and how many sites; changes nothing."""

from optpolined.config import GuestConfig
from optpolined.kernel.module.header import read_status
from optpolined.kernel.module.module_list import read_modules
from optpolined.patching.poke_entries import PokeEntries
from optpolined.session.link import NothingToGainError, connect, refuse_on_failure
from optpolined.session.survey import Survey

__all__ = ("dry_run",)


def dry_run(guest: str, config: GuestConfig, *, force: bool) -> list[str]:
    """Look at a guest through its QMP socket and its process's memory; it is never stopped.

    :raise AttachRefusedError: it could not be attached to.
    :raise NothingToGainError: it has no retpolines.
    """
    with connect(config, writable=False) as link, refuse_on_failure():
        attachment = link.attachment
        header = attachment.header
        modules = read_modules(attachment.space, header)
        originals = PokeEntries(attachment.space, header).originals()
        found = Survey(attachment, modules, config.policy, originals)
        held = read_status(attachment.space, header).held
    inventory = found.inventory
    release = attachment.vmcoreinfo.osrelease
    if not (inventory.found or force):
        raise NothingToGainError(release)
    skipped = ", ".join(f"{reason} {count}" for reason, count in inventory.skipped.most_common())
    names = ", ".join(module.name for module in modules) or "none listed"
    in_use = ", in use by a daemon" if held else ""
    return [
        f"guest    {guest}: QEMU pid {link.process.pid}, {link.accelerator}, {link.vcpus} vCPUs",
        f"kernel   {release}, page tables of {attachment.vmcoreinfo.levels} levels",
        f"module   optpoline.ko at {header.address:#x}{in_use}",
        f"arena    {header.arena_size >> 10} KiB at {header.arena:#x}",
        f"modules  {names}",
        f"sites    {inventory.found} found, {len(inventory.eligible)} eligible",
        f"skipped  {skipped or 'none'}",
        "nothing was changed",
    ]
