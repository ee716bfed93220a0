"""Writes traces to a file while they grow; lines.py describes the file."""

import gzip
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Final, Self, TypeVar

from optpolined.addresses import GuestVirtual
from optpolined.learning.config import LearningConfig
from optpolined.learning.strategy import SiteEpoch
from optpolined.learning.trace.lines import (
    NAME_MAX,
    VERSION,
    EpochLine,
    HeadLine,
    RulingLine,
    SaidLine,
    SitesLine,
    differences,
    line_of_form,
    line_of_key,
)
from optpolined.learning.trace.model import Said, TraceEpoch, TraceHeader

__all__ = ("Name", "TraceWriter")

_LEVEL: Final = 6
"""The default of zlib; 9 makes the file half a percent smaller."""

ThingT = TypeVar("ThingT")

Name = Callable[[GuestVirtual], str]
"""Returns the symbol of an address; an empty string if it has none."""


class TraceWriter:
    """Writes one trace as a gzip member of its own; the file stays the caller's.

    Every method raises ``OSError`` if the file cannot be written.
    """

    def __init__(self, file: IO[bytes], header: TraceHeader) -> None:
        self._numbers: dict[GuestVirtual, int] = {}
        # No time and no name, so that the same trace gives the same file.
        self._gzip = gzip.GzipFile("", "wb", _LEVEL, fileobj=file, mtime=0)
        head = HeadLine(
            optpolined_trace=VERSION,
            release=_printable(header.release),
            build_id=header.build_id,
            strategy=header.strategy,
            learning=header.learning,
        )
        self._gzip.write(head.model_dump_json().encode() + b"\n")

    def write(self, epoch: TraceEpoch, name: Name) -> None:
        """Add an epoch.

        :param name: Called once for each address.
        """
        number = _Numbers(self._numbers, name)
        # Not validated, because that takes longer than all the rest; the reader validates.
        line = EpochLine.model_construct(
            epoch=epoch.epoch,
            seconds=epoch.seconds,
            came=[(line_of_key(key), sites) for key, sites in number.by_thing(epoch.came)],
            went=number.sites(epoch.went),
            said=[_said_line(said, number) for said in epoch.said],
            covered=number.sites(epoch.covered),
            uncovered=number.sites(epoch.uncovered),
            census=epoch.census,
            forms=[(line_of_form(f, number), sites) for f, sites in number.by_thing(epoch.forms)],
            counts=[
                (number(site), [_row(cpu, gain, number) for cpu, gain in by_cpu.items()])
                for site, by_cpu in epoch.counts.items()
            ],
            tables=[
                (number(site), [(index, number(target)) for index, target in table.items()])
                for site, table in epoch.tables.items()
            ],
            wanted=[(line_of_form(f, number), sites) for f, sites in number.by_thing(epoch.wanted)],
        )
        line.new = number.new
        self._gzip.write(line.model_dump_json(exclude_defaults=True).encode() + b"\n")

    def flush(self) -> None:
        """Make all epochs so far readable, even if no more follow."""
        self._gzip.flush()

    def close(self) -> None:
        """Write the end; the file is not closed."""
        self._gzip.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Numbers:
    """Numbers addresses in the order of their first use; ``new`` has those of the present line."""

    def __init__(self, known: dict[GuestVirtual, int], name: Name) -> None:
        self._known = known
        self._name = name
        self.new: list[tuple[int, str]] = []

    def __call__(self, address: GuestVirtual) -> int:
        number = self._known.get(address)
        if number is None:
            number = self._known[address] = len(self._known)
            self.new.append((address, _printable(self._name(address))))
        return number

    def sites(self, sites: Iterable[GuestVirtual]) -> SitesLine:
        """Return some sites as they are written."""
        return differences(map(self, sites))

    def by_thing(self, things: Mapping[GuestVirtual, ThingT]) -> list[tuple[ThingT, SitesLine]]:
        """Return the sites that share each value."""
        groups: dict[ThingT, list[GuestVirtual]] = {}
        for site, thing in things.items():
            groups.setdefault(thing, []).append(site)
        return [(thing, self.sites(sites)) for thing, sites in groups.items()]


def _printable(name: str) -> str:
    """Return a name from the guest without the characters that a terminal takes for commands."""
    return "".join(sign if " " <= sign <= "~" else "?" for sign in name[:NAME_MAX])


def _said_line(said: Said, number: _Numbers) -> SaidLine:
    if isinstance(said, LearningConfig):
        return SaidLine(learning=said)
    return SaidLine(
        rulings=[
            (
                RulingLine.model_construct(
                    target=None if override.target is None else number(override.target),
                    reason=_printable(override.reason),
                ),
                sites,
            )
            for override, sites in number.by_thing(said)
        ]
    )


def _row(cpu: int, gain: SiteEpoch, number: _Numbers) -> list[int]:
    row = [cpu, gain.other, gain.hits]
    for target, count in gain.calls.items():
        row += (number(target), count)
    return row
