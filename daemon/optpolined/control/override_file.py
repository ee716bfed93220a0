"""What people ordered while the daemon ran, kept for the one that follows a daemon that died.

NAME.orders in the runtime directory has it.  A daemon that ends by itself removes the file: orders
hold until they are taken back or the daemon ends, and to be killed is no end.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from optpolined.config import PolicyConfig

__all__ = ("OverrideFile", "SavedOverrides", "Standstill")

_log = logging.getLogger(__name__)


class Standstill(Enum):
    """Whether nothing is to be learned now."""

    NONE = "none"
    FROZEN = "frozen"
    """All sites stay as they are."""
    REVERTED = "reverted"
    """All sites are put back, and stay so."""


@dataclass(frozen=True, slots=True)
class SavedOverrides:
    """All that holds now; ``policy`` is what it was ordered on top of."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    policy: PolicyConfig
    pins: Mapping[str, str]
    bans: Sequence[str]
    reverted: Sequence[str]
    standstill: Standstill


_JSON: TypeAdapter[SavedOverrides] = TypeAdapter(SavedOverrides)


class OverrideFile:
    """The file of one guest; for whoever holds the guest's lock."""

    def __init__(self, directory: Path, guest: str) -> None:
        self._path = directory / f"{guest}.orders"

    def read(self) -> SavedOverrides | None:
        """What a daemon that died had been ordered; a file that makes no sense is none."""
        try:
            saved_overrides = _JSON.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            said = str(error).partition("\n")[0]
            _log.warning("%s: the orders of the last daemon are lost: %s", self._path, said)
            return None
        return saved_overrides

    def write(self, saved_overrides: SavedOverrides) -> None:
        """Keep ``orders`` instead of what was kept; what cannot be kept holds all the same."""
        new = self._path.with_suffix(".orders-new")
        try:
            new.write_bytes(_JSON.dump_json(saved_overrides))
            new.replace(self._path)
        except OSError as error:
            _log.warning("%s: orders will not outlive this daemon: %s", new, error.strerror)

    def forget(self) -> None:
        """Remove the file, if there is one."""
        self._path.unlink(missing_ok=True)
