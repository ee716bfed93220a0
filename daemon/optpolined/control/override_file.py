"""The operator's overrides on disk, for the daemon that follows one that died.

The file is NAME.orders in the runtime directory.  Overrides survive a crash; a daemon that ends by
itself removes the file.
"""

import logging
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from optpolined.control.overrides import Overrides

__all__ = ("OverrideFile",)

_log = logging.getLogger(__name__)

_JSON: TypeAdapter[Overrides] = TypeAdapter(Overrides)


class OverrideFile:
    """The file of one guest; only the process that holds the guest's lock may use it."""

    def __init__(self, directory: Path, guest: str) -> None:
        self._path = directory / f"{guest}.orders"

    def read(self) -> Overrides | None:
        """Return the overrides of a daemon that died; ``None`` where the file has none."""
        try:
            return _JSON.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            said = str(error).partition("\n")[0]
            _log.warning(
                "%s cannot be read: pins, bans and freezes of the last daemon are lost: %s",
                self._path,
                said,
            )
            return None

    def write(self, overrides: Overrides) -> None:
        """Replace the file.  Overrides that cannot be written hold for as long as the daemon."""
        new = self._path.with_suffix(".orders-new")
        try:
            new.write_bytes(_JSON.dump_json(overrides))
            new.replace(self._path)
        except OSError as error:
            _log.warning(
                "%s cannot be written: pins, bans and freezes will not survive a crash: %s",
                new,
                error.strerror,
            )

    def remove(self) -> None:
        """Remove the file; nothing happens where there is no file."""
        self._path.unlink(missing_ok=True)
