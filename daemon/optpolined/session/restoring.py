"""Every site is put back, and the module is let go."""

import logging
from contextlib import suppress

from optpolined.codegen.forms import ORIGINAL
from optpolined.kernel.errors import RequestTimeoutError, StillInUseError
from optpolined.patching.patcher import Patcher
from optpolined.patching.static_calls import StaticCallError, StaticCalls
from optpolined.qemu.errors import ResumedError
from optpolined.session.access import GuestAccess

__all__ = ("put_all_back", "release")

_log = logging.getLogger(__name__)

_ATTEMPTS = 3


def put_all_back(access: GuestAccess, patcher: Patcher, static_calls: StaticCalls) -> bool:
    """End a census, put every site and static call back; return whether all of them are as built.

    :raise QemuError, KernelError: QEMU failed, or the module is gone.
    """
    census_is_over = _end_census(access)
    for _ in range(_ATTEMPTS):
        forms = patcher.observe()
        left = {site: ORIGINAL for site, form in sorted(forms.items()) if form != ORIGINAL}
        if not left:
            break
        try:
            patcher.apply(left)
        except ResumedError:
            access.put_back_interrupted()
        except RequestTimeoutError as error:
            _log.error("%s; some inline sites are left half restored, which is legal", error)
            break
    static_calls_are_restored = _restore(static_calls)
    return all(form == ORIGINAL for form in patcher.observe().values()) and (
        static_calls_are_restored and census_is_over
    )


def _end_census(access: GuestAccess) -> bool:
    for _ in range(_ATTEMPTS):
        with suppress(ResumedError):
            return access.heads.disarm()
    _log.error("the census goes on: the guest was resumed in each stop that was to end it")
    return False


def _restore(static_calls: StaticCalls) -> bool:
    try:
        static_calls.restore()
    except (StaticCallError, ResumedError) as error:
        _log.error("%s", error)
        return False
    return True


def release(access: GuestAccess) -> None:
    """Let the module go; where something may still lead to it, it stays, and the log says so.

    :raise KernelError: the module is gone, or refused.
    """
    try:
        access.release_module()
    except (RequestTimeoutError, StillInUseError) as error:
        _log.error("%s; optpoline.ko stays loaded until a later run ends cleanly", error)
