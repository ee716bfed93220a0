"""Writes and reads files of traces.

The file is gzip, of one or more members, with lines of JSON in it.  A line with
``optpolined_trace``, the version of the format, starts a trace, and the lines that follow are its
epochs.  A daemon that attaches again starts another trace.  lines.py defines the lines.

Each address is written once: ``new`` has those that a line is the first to use, each with its
symbol, and numbers them through the trace, from 0, in that order.  All other fields refer to an
address by its number.  ``forms`` holds what changed since the line before.  What many sites have in
common is written once, with the numbers of the sites.
"""

import gzip
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Final, Self, TypeVar

from pydantic import ValidationError

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Form
from optpolined.learning.config import LearningConfig
from optpolined.learning.overridden import Override
from optpolined.learning.strategy import SiteEpoch
from optpolined.learning.trace.errors import TraceError
from optpolined.learning.trace.lines import (
    ADDRESSES_MAX,
    NAME_MAX,
    VERSION,
    EpochLine,
    FormLine,
    HeadLine,
    RulingLine,
    SaidLine,
    SitesLine,
    form_of,
    key_of,
    line_of_form,
    line_of_key,
)
from optpolined.learning.trace.model import Said, Trace, TraceEpoch, TraceHeader

__all__ = ("Name", "TraceWriter", "read_traces")

_LINE_MAX: Final = 32 << 20
_FILE_MAX: Final = 512 << 20
"""Bytes, unpacked."""
_EPOCHS_MAX: Final = 1_000_000
"""The most epochs of a file: six days of epochs of half a second."""
_TRACES_MAX: Final = 1000

_LEVEL: Final = 6
"""The default of zlib; 9 makes the file half a percent smaller."""

_HEAD_MARK: Final = b'{"optpolined_trace":'

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
        numbers = sorted(map(self, sites))
        return [number - before for before, number in zip([0, *numbers], numbers, strict=False)]

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


def read_traces(path: Path) -> list[Trace]:
    """Read all traces of a file; it is not trusted.

    From a file whose end is missing, the complete epochs are read.

    :raise TraceError: the file cannot be read, or is not a trace file of this version.
    """
    traces: list[_Reader] = []
    cut = False
    place = 0
    try:
        with gzip.open(path) as file:
            for line in _lines(file):
                place += 1
                cut = not line.endswith(b"\n")
                if not cut:
                    _take(line, traces)
    except EOFError:
        cut = True
    except ValidationError as error:
        raise TraceError(path, f"line {place}: {_complaint(error)}") from error
    except ValueError as error:
        raise TraceError(path, f"line {place}: {error}") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(path, f"not a trace of optpolined: {error}") from error
    except OSError as error:
        raise TraceError(path, f"cannot be read: {error.strerror or error}") from error
    if not traces:
        raise TraceError(path, "not a trace of optpolined: it is empty")
    return [trace.trace(is_cut=cut and trace is traces[-1]) for trace in traces]


def _lines(file: gzip.GzipFile) -> Iterator[bytes]:
    """Yield the lines, each with its line end.

    :raise ValueError: a line, or all lines together, are longer than any recorder writes.
    """
    size = 0
    while line := file.readline(_LINE_MAX + 1):
        size += len(line)
        if len(line) > _LINE_MAX or size > _FILE_MAX:
            raise ValueError(f"more than {_LINE_MAX >> 20} MiB a line or {_FILE_MAX >> 20} in all")
        yield line


def _take(line: bytes, traces: "list[_Reader]") -> None:
    if line.startswith(_HEAD_MARK):
        if len(traces) == _TRACES_MAX:
            raise ValueError(f"more than {_TRACES_MAX} traces in a file")
        head = HeadLine.model_validate_json(line)
        if head.optpolined_trace != VERSION:
            raise ValueError(
                f"a trace of version {head.optpolined_trace}; this optpolined reads {VERSION}"
            )
        traces.append(_Reader(head))
    elif not traces:
        raise ValueError("not a trace of optpolined")
    elif sum(len(trace.epochs) for trace in traces) >= _EPOCHS_MAX:
        raise ValueError(f"more than {_EPOCHS_MAX} epochs")
    else:
        traces[-1].take(EpochLine.model_validate_json(line))


class _Reader:
    """Builds one trace while it is read."""

    def __init__(self, head: HeadLine) -> None:
        self._header = TraceHeader(head.release, head.build_id, head.strategy, head.learning)
        self._addresses: list[GuestVirtual] = []
        self._names: dict[GuestVirtual, str] = {}
        self._present: set[GuestVirtual] = set()
        self.epochs: list[TraceEpoch] = []

    def take(self, line: EpochLine) -> None:
        """Add an epoch.

        :raise ValueError: the epoch contradicts those before it.
        """
        for address, name in line.new:
            self._addresses.append(GuestVirtual(address))
            if name:
                self._names[GuestVirtual(address)] = name
        if len(self._addresses) > ADDRESSES_MAX:
            raise ValueError(f"more than {ADDRESSES_MAX} addresses")
        if self.epochs and line.epoch <= self.epochs[-1].epoch:
            raise ValueError(f"epoch {line.epoch} after epoch {self.epochs[-1].epoch}")
        epoch = self._epoch(line)
        self._present.difference_update(epoch.went)
        self._present.update(epoch.came)
        if not self._present.issuperset(epoch.counts):
            raise ValueError("it counts calls of a site that never came, or is gone")
        if any(
            not self._present.issuperset(said)
            for said in epoch.said
            if not isinstance(said, LearningConfig)
        ):
            raise ValueError("it rules on a site that never came, or is gone")
        self.epochs.append(epoch)

    def _epoch(self, line: EpochLine) -> TraceEpoch:
        at = self._at
        return TraceEpoch(
            line.epoch,
            line.seconds,
            counts={
                at(site): {row[0]: self._gain(row) for row in rows} for site, rows in line.counts
            },
            came={site: key_of(key) for key, sites in line.came for site in self._sites(sites)},
            went=tuple(self._sites(line.went)),
            said=tuple(map(self._said, line.said)),
            forms=self._forms(line.forms),
            tables={
                at(site): {index: at(target) for index, target in table}
                for site, table in line.tables
            },
            wanted=self._forms(line.wanted),
        )

    def _forms(self, lines: list[tuple[FormLine, SitesLine]]) -> dict[GuestVirtual, Form]:
        forms = [(form_of(form, self._at), sites) for form, sites in lines]
        return {site: form for form, sites in forms for site in self._sites(sites)}

    def _said(self, line: SaidLine) -> Said:
        if (line.rulings is None) == (line.learning is None):
            raise ValueError("what was said is either rulings or settings")
        if line.learning is not None:
            return line.learning
        return {
            site: Override(
                None if override.target is None else self._at(override.target), override.reason
            )
            for override, sites in line.rulings or ()
            for site in self._sites(sites)
        }

    def _sites(self, line: SitesLine) -> Iterator[GuestVirtual]:
        return map(self._at, itertools.accumulate(line))

    def _at(self, number: int) -> GuestVirtual:
        if number >= len(self._addresses):
            raise ValueError(f"address {number} of {len(self._addresses)}")
        return self._addresses[number]

    def _gain(self, row: list[int]) -> SiteEpoch:
        if len(row) % 2 == 0:
            raise ValueError("a target without its calls")
        calls = {
            self._at(target): count for target, count in zip(row[3::2], row[4::2], strict=True)
        }
        return SiteEpoch(calls, row[1], row[2])

    def trace(self, *, is_cut: bool) -> Trace:
        """Return the trace that was read."""
        return Trace(self._header, self.epochs, self._names, is_cut)


def _complaint(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "not JSON"
    return f"{where}: {first['msg']}"
