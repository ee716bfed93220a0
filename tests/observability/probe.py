"""Sets a kprobe: another patcher of the guest's text."""

from types import TracebackType
from typing import Self

from guest.image.boot import Guest

__all__ = ("Probe",)

_TRACING = "/sys/kernel/tracing"


class Probe:
    """Set a kprobe event on a site for the ``with`` block.

    :param place: the site, as ``vfs_read+0x9e``.
    """

    def __init__(self, guest: Guest, place: str) -> None:
        self._guest = guest
        self._place = place

    def __enter__(self) -> Self:
        self._guest.run(
            f"mount | grep -q tracefs || mount -t tracefs tracefs {_TRACING};"
            f"echo 'p:theirs {self._place}' >{_TRACING}/kprobe_events &&"
            f"echo 1 >{_TRACING}/events/kprobes/theirs/enable"
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._guest.run(
            f"echo 0 >{_TRACING}/events/kprobes/theirs/enable; echo >{_TRACING}/kprobe_events"
        )
