"""Whether QEMU is moving the guest, here or elsewhere.

While it does, nothing is poked: what is copied must hold whole instructions only.  The last thing
that a QEMU does with a guest that it gives away is to stop it.  The end of a stop of ours would
resume the guest at that moment.
"""

from typing import Protocol

from optpolined.session.errors import AttachRefusedError

__all__ = ("has_migrated", "is_migrating", "refuse_migration")

# MigrationStatus in QEMU's qapi/migration.json: all that has begun and not ended.
_UNDER_WAY = frozenset(
    {
        "setup",
        "cancelling",
        "active",
        "postcopy-active",
        "postcopy-paused",
        "postcopy-recover",
        "pre-switchover",
        "device",
        "wait-unplug",
    }
)


class _Monitor(Protocol):
    def execute(self, command: str) -> object: ...
    def status(self) -> str: ...


def is_migrating(monitor: _Monitor) -> bool:
    """Ask QEMU; before the first migration it answers with nothing.

    :raise MonitorError: QEMU did not answer.
    """
    answer = monitor.execute("query-migrate")
    return isinstance(answer, dict) and answer.get("status") in _UNDER_WAY


def has_migrated(monitor: _Monitor) -> bool:
    """Whether the guest runs elsewhere now.

    :raise MonitorError: QEMU did not answer.
    """
    return monitor.status() == "postmigrate"


def refuse_migration(monitor: _Monitor) -> None:
    """Refuse to attach to a guest that is being moved.

    :raise AttachRefusedError: it arrives, leaves, or has left.
    :raise MonitorError: QEMU did not answer.
    """
    if has_migrated(monitor):
        raise AttachRefusedError("the guest has migrated: start optpolined where it runs now")
    if monitor.status() == "inmigrate":
        raise AttachRefusedError("the guest has not arrived yet: start again when it runs here")
    if is_migrating(monitor):
        raise AttachRefusedError("the guest is migrating: start again when that has ended")
