"""Whether QEMU is moving the guest elsewhere."""

from optpolined.qemu.monitor import Monitor

__all__ = ("is_migrating",)

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


def is_migrating(monitor: Monitor) -> bool:
    """Ask QEMU; before the first migration it answers with nothing.

    :raise MonitorError: QEMU did not answer.
    """
    answer = monitor.execute("query-migrate")
    return isinstance(answer, dict) and answer.get("status") in _UNDER_WAY
