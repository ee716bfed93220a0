"""Log lines for changes: what each site became, or why it was left alone."""

import logging
from collections.abc import Callable, Mapping

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Form
from optpolined.control.event_log import form_name
from optpolined.patching.patcher import PatchReport

__all__ = ("log_changes",)

_log = logging.getLogger(__name__)


def log_changes(
    wanted: Mapping[GuestVirtual, Form], report: PatchReport, name: Callable[[GuestVirtual], str]
) -> None:
    """Log each change of ``wanted`` at level debug; to name thousands of sites takes a while."""
    if not _log.isEnabledFor(logging.DEBUG):
        return
    for site, form in wanted.items():
        reason = report.sites.get(site)
        said = f"left alone: {reason}" if reason else _what(form, name)
        extra = {"site": f"{site:#x}", "reason": reason or ""}
        _log.debug("%s: %s", name(site), said, extra=extra)


def _what(form: Form, name: Callable[[GuestVirtual], str]) -> str:
    targets = dict.fromkeys(getattr(form, "targets", ()))
    goes = f" to {', '.join(map(name, targets))}" if targets else ""
    return f"{form_name(form)}{goes}"
