"""Writes what the strategy sees and decides to a trace while the daemon works (`--record`).

Where the disk is full, the recording ends with one line in the log, and the daemon goes on.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import ORIGINAL, Form, Key
from optpolined.learning.config import LearningConfig
from optpolined.learning.overridden import Override
from optpolined.learning.shape import KeyTable
from optpolined.learning.strategy import SiteEpoch
from optpolined.learning.trace.errors import TraceError
from optpolined.learning.trace.model import Said, TraceEpoch, TraceHeader
from optpolined.learning.trace.writer import Name, TraceWriter

__all__ = ("Recorder", "Recording")

_log = logging.getLogger(__name__)

_Counts = Mapping[GuestVirtual, SiteEpoch]
_Write = Callable[[TraceEpoch, Name], None]


class Recording:
    """A file with one trace for each attachment."""

    def __init__(self, path: Path) -> None:
        """Create the file.

        :raise TraceError: it cannot be written.
        """
        self._path = path
        self._failed = False
        try:
            self._file: IO[bytes] = path.open("wb")
        except OSError as error:
            raise TraceError(path, f"cannot be written: {error.strerror}") from error
        self._writer: TraceWriter | None = None

    def attach(self, header: TraceHeader, name: Name) -> "Recorder":
        """Begin the trace of one attachment, and end that of the previous one.

        :param name: Returns the symbol of an address.
        """
        self._guarded(self._end)
        self._guarded(lambda: self._begin(header))
        return Recorder(lambda *epoch: self._guarded(lambda: self._write(*epoch)), name)

    def close(self) -> None:
        """End the trace, and close the file."""
        self._guarded(self._end)
        with suppress(OSError):  # it was logged before
            self._file.close()

    def _begin(self, header: TraceHeader) -> None:
        self._writer = TraceWriter(self._file, header)
        self._writer.flush()

    def _end(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            self._file.flush()

    def _write(self, epoch: TraceEpoch, name: Name) -> None:
        if self._writer is not None:
            self._writer.write(epoch, name)
            self._writer.flush()

    def _guarded(self, act: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            act()
        except OSError as error:
            self._failed = True
            self._writer = None
            _log.error(
                "%s: %s; the recording ends here, and the daemon goes on",
                self._path,
                error.strerror or error,
            )


class Recorder:
    """The trace of one attachment.  Notes of the learner go into the next epoch that is written."""

    def __init__(self, write: _Write, name: Name) -> None:
        self._write = write
        self._name = name
        self._came: dict[GuestVirtual, Key | None] = {}
        self._went: list[GuestVirtual] = []
        self._said: list[Said] = []
        self._overrides: dict[GuestVirtual, Override] = {}
        self._written: dict[GuestVirtual, Form] = {}
        self._standing: dict[GuestVirtual, Form] = {}
        self._present: set[GuestVirtual] = set()
        self._written_covered: AbstractSet[GuestVirtual] = frozenset()
        self._covered: AbstractSet[GuestVirtual] = frozenset()
        self._seen: TraceEpoch | None = None

    def note_sites(
        self, came: Mapping[GuestVirtual, Key | None], went: Iterable[GuestVirtual]
    ) -> None:
        """Note the sites of loaded and of unloaded modules."""
        went = list(went)
        # The trace has overrides after sites: they must not name sites of unloaded modules.
        gone = set(went)
        self._said = [
            said if isinstance(said, LearningConfig) else _without(said, gone)
            for said in self._said
        ]
        self._overrides = _without(self._overrides, gone)
        self._written_covered -= gone
        self._present -= gone
        self._present.update(came)
        for site in went:
            self._written.pop(site, None)
            if site in self._came:
                del self._came[site]
            else:
                self._went.append(site)
        self._came.update(came)

    def note_overrides(self, overrides: Mapping[GuestVirtual, Override]) -> None:
        """Note the overrides that hold from now on."""
        if overrides != self._overrides:
            self._overrides = dict(overrides)
            self._said.append(self._overrides)

    def note_settings(self, learning: LearningConfig) -> None:
        """Note the settings that hold from now on."""
        self._said.append(learning)

    def note_counts(
        self,
        epoch: int,
        seconds: float,
        by_cpu: Mapping[int, _Counts],
        tables: Mapping[GuestVirtual, KeyTable],
        forms: Mapping[GuestVirtual, Form],
        *,
        covered: AbstractSet[GuestVirtual] = frozenset(),
        census: bool = False,
    ) -> None:
        """Note what the strategy is given; dropped where no decision follows.

        :param covered: The sites that learn by census.
        :param census: Whether a census counted all calls of those for all of the epoch.
        """
        covered &= self._present  # the trace has no other sites
        counts: dict[GuestVirtual, dict[int, SiteEpoch]] = {}
        for cpu, gains in by_cpu.items():
            for site, gain in gains.items():
                counts.setdefault(site, {})[cpu] = gain
        self._seen = TraceEpoch(
            epoch,
            seconds,
            counts,
            forms=self._changed(forms),
            tables=tables,
            covered=tuple(sorted(covered - self._written_covered)),
            uncovered=tuple(sorted(self._written_covered - covered)),
            census=census,
        )
        self._standing = {site: form for site, form in forms.items() if form != ORIGINAL}
        self._covered = covered

    def _changed(self, forms: Mapping[GuestVirtual, Form]) -> dict[GuestVirtual, Form]:
        """Return the forms that differ from the epoch that was written last."""
        changed = {
            site: form for site, form in forms.items() if form != self._written.get(site, ORIGINAL)
        }
        changed.update(dict.fromkeys(self._written.keys() - forms.keys(), ORIGINAL))
        return changed

    def write_epoch(self, wanted: Mapping[GuestVirtual, Form]) -> None:
        """Write the epoch: what the strategy was given last, and what it decided."""
        if self._seen is None:
            return
        epoch = replace(
            self._seen,
            came=self._came,
            went=tuple(self._went),
            said=tuple(self._said),
            wanted=wanted,
        )
        self._seen, self._came, self._went, self._said = None, {}, [], []
        self._written = self._standing
        self._written_covered = self._covered
        self._write(epoch, self._name)


def _without(
    overrides: Mapping[GuestVirtual, Override], gone: AbstractSet[GuestVirtual]
) -> dict[GuestVirtual, Override]:
    return {site: override for site, override in overrides.items() if site not in gone}
