"""The settings of one guest: NAME.toml, checked by pydantic.

Every key has its unit in its name.  A file that is wrong gives one line that names the file, the
key, the value and what is allowed.
"""

import logging
import tomllib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from optpolined.api.refusal import Refusal
from optpolined.errors import OptpolinedError
from optpolined.learning.config import LearningConfig, Section, has_former_names
from optpolined.patching.protocol.choice import ProtocolChoice

__all__ = (
    "ConfigError",
    "GuestConfig",
    "LearningConfig",
    "MetricsConfig",
    "PokeConfig",
    "PolicyConfig",
    "QemuConfig",
    "Settings",
    "load",
    "matches",
)

_log = logging.getLogger(__name__)

DEFAULT_DIRECTORIES = (Path("/etc/optpolined"), Path("configs/guests"))


class ConfigError(OptpolinedError):
    """A setting is wrong; the message names the file, the key, the value and what is allowed."""


class QemuConfig(Section):
    """Where the guest is."""

    qmp_socket: Path
    gdbstub_socket: Path | None = None
    """An existing gdbstub; without it the daemon opens one over QMP in ``runtime_directory``."""
    answer_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 15.0
    """How long QEMU may take to answer, on either socket; a busy host can make it wait for seconds,
    and nothing is gained by giving up a guest that may stand stopped."""
    allow_stub_reads: bool = True
    """Read guest memory by short stops where /proc/PID/mem may not be read."""


class PokeConfig(Section):
    """How sites are changed."""

    protocol: ProtocolChoice = ProtocolChoice.AUTO
    """How instructions are replaced: in one stop, or behind a breakpoint."""
    stop_budget_microseconds: Annotated[int, Field(ge=100, le=100_000)] = 1000
    batch_sites: Annotated[int, Field(ge=1, le=16_384)] = 512
    """Sites that may hold a 0xCC at the same time."""
    grace_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 60.0


class PolicyConfig(Section):
    """Which sites may be touched, and what is decided about some of them.

    Patterns are shell patterns over ``function`` (kernel text) or ``module:function``.
    """

    mode: Literal["opt-out", "opt-in"] = "opt-out"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    pins: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    """The only target of a site, whatever is learned: by the site's name, the target's."""
    bans: tuple[str, ...] = ()
    """Sites, by name, and patterns, whose sites stay as they were built."""

    def refusal(self, function: str, module: str | None) -> Refusal | None:
        """Why the policy leaves a site alone; ``None`` where it does not."""
        name = f"{module}:{function}" if module else function
        if matches(name, self.exclude):
            return Refusal.POLICY_EXCLUDED
        if self.mode == "opt-in" and not matches(name, self.include):
            return Refusal.POLICY_NOT_INCLUDED
        return None


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a ``function`` or ``module:function`` is one of those that ``patterns`` mean."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class MetricsConfig(Section):
    """The Prometheus endpoint."""

    listen_address: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """0: no endpoint."""
    hottest_sites: Annotated[int, Field(ge=0, le=200)] = 20
    """So many of the hottest promoted sites are told one by one."""


class GuestConfig(Section):
    """One guest."""

    qemu: QemuConfig
    poke: PokeConfig = PokeConfig()
    learning: LearningConfig = LearningConfig()
    policy: PolicyConfig = PolicyConfig()
    metrics: MetricsConfig = MetricsConfig()
    runtime_directory: Path = Path("/run/optpolined")
    """Lock files, notes about stops, the sockets; made with mode 0700 where it is absent."""


class Settings:
    """The settings of one guest that hold now.

    A reload replaces ``config``.  Everything that works by the settings keeps this object and reads
    them here each time, so that a reload reaches all of it.
    """

    def __init__(self, config: GuestConfig) -> None:
        self.config = config


def load(name: str, directories: Sequence[Path] = DEFAULT_DIRECTORIES) -> GuestConfig:
    """Read NAME.toml from the first of ``directories`` that has it.

    :raise ConfigError: absent, unreadable, not TOML, or a key or value that is not allowed.
    """
    if not name or name.startswith(".") or "/" in name:
        raise ConfigError(f"guest name {name!r}: use the name of a file without its .toml")
    paths = [directory / f"{name}.toml" for directory in directories]
    for path in paths:
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        return _parse(path)
    near = get_close_matches(name, _guests(directories), 1)
    hint = f"did you mean {near[0]}?" if near else "copy configs/guests/vm1.toml"
    places = ", ".join(map(str, paths))
    raise ConfigError(f"no configuration for guest {name!r}: looked for {places}; {hint}")


def _guests(directories: Sequence[Path]) -> list[str]:
    """The guests that have a file, as far as we may look."""
    return [path.stem for directory in directories for path in directory.glob("*.toml")]


def _parse(path: Path) -> GuestConfig:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        config = GuestConfig.model_validate(tables)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_complaint(error)}") from error
    if has_former_names(tables.get("learning")):
        _log.warning("%s: the strategy 'epoch' is called 'periodic' now; rename it there", path)
    return config


def _first_complaint(error: ValidationError) -> str:
    """One line for the first thing that is wrong: key, value, and what is allowed."""
    details = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in details["loc"])
    match details["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{key}: unknown key; allowed: {', '.join(_siblings(details['loc']))}"
        case "missing":
            return f"{key}: this key is required"
        case "setting":
            return f"{key}.{details['msg']}"
        case _:
            more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
            return f"{key}: {details['input']!r} is not allowed: {details['msg']}{more}"


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed where the last one of ``location`` is not."""
    section: object = GuestConfig
    for part in location[:-1]:
        if isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[str(part)].annotation
    if isinstance(section, type) and issubclass(section, BaseModel):
        return list(section.model_fields)
    return [field.name for field in fields(section)] if is_dataclass(section) else []
