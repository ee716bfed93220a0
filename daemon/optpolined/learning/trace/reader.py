"""Reads the traces of a file, which is not trusted; lines.py describes the file."""

import gzip
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Form
from optpolined.learning.config import LearningConfig
from optpolined.learning.overridden import Override
from optpolined.learning.strategy import SiteEpoch
from optpolined.learning.trace.errors import TraceError
from optpolined.learning.trace.lines import (
    ADDRESSES_MAX,
    OLDEST_VERSION,
    VERSION,
    EpochLine,
    EpochLineOfVersion1,
    FormLine,
    HeadLine,
    SaidLine,
    SitesLine,
    form_of,
    key_of,
)
from optpolined.learning.trace.model import Said, Trace, TraceEpoch, TraceHeader

__all__ = ("read_traces",)

_LINE_MAX: Final = 32 << 20
_FILE_MAX: Final = 512 << 20
"""Bytes, unpacked."""
_EPOCHS_MAX: Final = 1_000_000
"""The most epochs of a file: six days of epochs of half a second."""
_TRACES_MAX: Final = 1000

_HEAD_MARK: Final = b'{"optpolined_trace":'


def read_traces(path: Path) -> list[Trace]:
    """Read all traces of a file; it is not trusted.

    From a file whose end is missing, the complete epochs are read.

    :raise TraceError: the file cannot be read, or is not a trace file of a known version.
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
        if not OLDEST_VERSION <= head.optpolined_trace <= VERSION:
            raise ValueError(
                f"a trace of version {head.optpolined_trace}; "
                f"this optpolined reads {OLDEST_VERSION} to {VERSION}"
            )
        traces.append(_Reader(head))
    elif not traces:
        raise ValueError("not a trace of optpolined")
    elif sum(len(trace.epochs) for trace in traces) >= _EPOCHS_MAX:
        raise ValueError(f"more than {_EPOCHS_MAX} epochs")
    elif traces[-1].version == 1:
        traces[-1].take(EpochLineOfVersion1.model_validate_json(line).translated())
    else:
        traces[-1].take(EpochLine.model_validate_json(line))


class _Reader:
    """Builds one trace while it is read."""

    def __init__(self, head: HeadLine) -> None:
        self._header = TraceHeader(head.release, head.build_id, head.strategy, head.learning)
        self.version = head.optpolined_trace
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
        if not self._present.issuperset(epoch.covered):
            raise ValueError("a census covers a site that never came, or is gone")
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
            covered=tuple(self._sites(line.covered)),
            uncovered=tuple(self._sites(line.uncovered)),
            census=line.census,
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
