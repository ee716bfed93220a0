"""The way from a link to a session, and back where a step of it fails.

1. look: the module lists the guest's modules, and the kernel's symbols are read.  A guest whose
   integrity is guarded is refused here.  Only the module's mailbox has been written, which is
   module data and no text.
2. recover: what a dead daemon left changed is put back.  This needs no undoing: it is one.
3. survey: text and sites are read.
4. hold: the module cannot be unloaded from now on.  Undone by a release, unless a dead daemon
   held it already.
5. counters: records that nothing refers to are cleared.
6. settle: static calls that a dead daemon left half-way are finished.

Patching begins after that.  Its undoing is :meth:`Session.close`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import Assembler
from optpolined.codegen.decode import BLOCK_BYTES_MAX, Decoder
from optpolined.codegen.errors import CodegenError
from optpolined.config import Settings
from optpolined.kernel.errors import ArenaError, KernelError, TranslationError
from optpolined.patching.arena import Arena
from optpolined.patching.recovery import blocks_in_use
from optpolined.qemu.errors import QemuError
from optpolined.session.access import GuestAccess
from optpolined.session.counting import SiteCounters
from optpolined.session.errors import NothingToGainError
from optpolined.session.link import Link
from optpolined.session.modules import look_first
from optpolined.session.session import Session
from optpolined.session.survey import Survey
from optpolined.session.tally import Tally

__all__ = ("attach",)

_log = logging.getLogger(__name__)


@contextmanager
def attach(
    link: Link,
    settings: Settings,
    clock: Callable[[], float],
    *,
    force: bool,
    tally: Tally | None = None,
) -> Iterator[Session]:
    """Recover and survey the guest at the other end of ``link``, and hold its module.

    Where a step fails, what the steps before it did to the guest is undone, last step first.  At
    the end of the block everything is put back, unless the session was restored or left before.
    After a KernelError or QemuError the guest is left as it is: it is not what was attached to, or
    there is nothing to put it back through.

    :param clock: In seconds, as ``time.monotonic``.
    :param force: Attach to a guest without a site to patch too.
    :param tally: Where stops, grace periods and recoveries are counted.
    :raise NothingToGainError: there is no site to patch, and ``force`` does not ask for none.
    :raise GuardedError: the guest's integrity is guarded; nothing was changed.
    :raise KernelError: what the guest says makes no sense.
    :raise QemuError: QEMU failed.
    """
    with ExitStack() as undo:
        session = _attach(GuestAccess(link, settings, clock, tally or Tally()), undo, force=force)
        undo.pop_all()  # close() has its own way to undo all of this
    try:
        yield session
    except (KernelError, QemuError):
        raise
    except BaseException:
        session.close()
        raise
    else:
        session.close()


def _attach(access: GuestAccess, undo: ExitStack, *, force: bool) -> Session:
    first = look_first(access)
    access.recover()
    attachment = access.link.attachment
    survey = Survey(
        attachment,
        first.modules,
        access.settings.config.policy,
        access.entries.originals(),
        symbols=first.symbols,
    )
    if not (survey.inventory.found or force):
        raise NothingToGainError(attachment.vmcoreinfo.osrelease)
    if not access.module_status().held:
        undo.callback(_release, access)
    access.hold_module()
    arena = Arena(access.header.arena, access.header.arena_size)
    _reserve(arena, blocks_in_use(access.leftovers(), access.header), access)
    counters = SiteCounters(access, survey)
    session = Session(access, first.loaded, survey, arena, counters)
    session.static_calls.settle()
    return session


def _release(access: GuestAccess) -> None:
    """Undo the hold; a failure is logged, because the reason for the undoing is on its way."""
    try:
        if access.module_status().held or not access.mailbox.idle():
            access.release_module()
    except (KernelError, QemuError) as error:
        _log.error("%s; optpoline.ko stays loaded until a later run ends cleanly", error)


def _reserve(arena: Arena, blocks: Iterable[GuestVirtual], access: GuestAccess) -> None:
    """Keep the blocks that a probe on a patched site may still jump to."""
    stubs = {address: register for register, address in access.header.learn_stub.items()}
    decoder = Decoder(Assembler())
    for address in blocks:
        try:
            size = min(BLOCK_BYTES_MAX, arena.base + arena.size - address)
            block = decoder.decode_block(access.space.read(address, size), address, stubs)
            arena.mark_used(address, block.size)
        except (TranslationError, CodegenError, ArenaError) as error:
            _log.warning("a probe refers to %#x in the arena: %s", address, error)
