"""The lines of a trace file, as pydantic models, and how forms and keys are written.

The file is gzip, of one or more members, with lines of JSON in it.  A line with
``optpolined_trace``, the version of the format, starts a trace, and the lines that follow are its
epochs.  A daemon that attaches again starts another trace.  The models below define the lines.

Each address is written once: ``new`` has those that a line is the first to use, each with its
symbol, and numbers them through the trace, from 0, in that order.  All other fields refer to an
address by its number.  ``forms``, ``covered`` and ``uncovered`` hold what changed since the line
before.  What many sites have in common is written once, with the numbers of the sites.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import (
    KEY_BITS_MAX,
    MAX_LEAVES,
    ORIGINAL,
    Chain,
    Form,
    Key,
    Keyed,
    LearnKeys,
    Tree,
)
from optpolined.learning.config import LearningConfig
from optpolined.learning.strategies import StrategyName
from optpolined.x86 import Register

__all__ = (
    "ADDRESSES_MAX",
    "NAME_MAX",
    "OLDEST_VERSION",
    "VERSION",
    "EpochLine",
    "EpochLineOfVersion1",
    "FormLine",
    "HeadLine",
    "KeyLine",
    "RulingLine",
    "SaidLine",
    "SitesLine",
    "differences",
    "form_of",
    "key_of",
    "line_of_form",
    "line_of_key",
)

VERSION = 3
"""The version of the format that is written.  Version 1 had no overrides, and named the sites of a
form one by one.  Version 2 had no censuses."""
OLDEST_VERSION = 1
"""The oldest version that is read."""

ADDRESSES_MAX = 1 << 20
"""The most sites and targets of one trace."""
NAME_MAX = 600
"""The most characters of a name; a symbol has 511 at most, and its module 55."""
_CPUS_MAX = 8192
"""The largest CONFIG_NR_CPUS."""
_ROW_MAX = 3 + 2 * 4096
_COUNT_MAX = 1 << 64

_Number = Annotated[int, Field(ge=0, lt=ADDRESSES_MAX)]
_Name = Annotated[str, Field(max_length=NAME_MAX, pattern=r"\A[\x20-\x7e]*\z")]
_Row = Annotated[
    list[Annotated[int, Field(ge=0, le=_COUNT_MAX)]], Field(min_length=3, max_length=_ROW_MAX)
]
"""CPU, calls without a slot, hits; then targets and their calls in turn."""
_EpochNumber = Annotated[int, Field(ge=0, lt=1 << 62)]
_Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
_AddressLine = tuple[Annotated[int, Field(ge=0, lt=1 << 64)], _Name]
_CountsLine = tuple[_Number, Annotated[list[_Row], Field(max_length=_CPUS_MAX)]]
_TableLine = tuple[
    _Number,
    Annotated[
        list[tuple[Annotated[int, Field(ge=0, lt=MAX_LEAVES)], _Number]],
        Field(max_length=MAX_LEAVES),
    ],
]

SitesLine = list[_Number]
"""The rising numbers of some sites: the first, then the difference of each to the one before.
Thousands of neighbours that share a form are a run of ones, which gzip makes very small."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


KeyLine = tuple[
    Annotated[int, Field(ge=0, le=15)],
    Annotated[int, Field(ge=0, le=30)],
    Annotated[int, Field(ge=1, le=KEY_BITS_MAX)],
]
"""Register, shift, bits."""


class FormLine(_Line):
    """A form."""

    kind: Literal["original", "chain", "audit", "tree", "keyed", "learn-keys"]
    targets: Annotated[list[_Number], Field(max_length=MAX_LEAVES)] = []
    indices: Annotated[
        list[Annotated[int, Field(ge=0, lt=MAX_LEAVES)]], Field(max_length=MAX_LEAVES)
    ] = []
    """The key indices of each target of a tree by key."""
    key: KeyLine | None = None


class HeadLine(_Line):
    """The first line of a trace."""

    optpolined_trace: int
    """:data:`OLDEST_VERSION` to :data:`VERSION`."""
    release: _Name
    build_id: Annotated[str, Field(pattern=r"\A[0-9a-f]{0,128}\z")] = ""
    strategy: StrategyName | None = None
    learning: LearningConfig


class RulingLine(_Line):
    """The override of a site."""

    target: _Number | None = None
    reason: _Name


class SaidLine(_Line):
    """What the operator changed: one of the two."""

    rulings: list[tuple[RulingLine, SitesLine]] | None = None
    learning: LearningConfig | None = None


class EpochLine(_Line):
    """One epoch."""

    epoch: _EpochNumber
    seconds: _Seconds
    new: list[_AddressLine] = []
    came: list[tuple[KeyLine | None, SitesLine]] = []
    went: SitesLine = []
    said: list[SaidLine] = []
    covered: SitesLine = []
    uncovered: SitesLine = []
    census: bool = False
    forms: list[tuple[FormLine, SitesLine]] = []
    counts: list[_CountsLine] = []
    tables: list[_TableLine] = []
    wanted: list[tuple[FormLine, SitesLine]] = []


class EpochLineOfVersion1(_Line):
    """One epoch, as version 1 wrote it."""

    epoch: _EpochNumber
    seconds: _Seconds
    new: list[_AddressLine] = []
    came: list[tuple[_Number, KeyLine | None]] = []
    went: list[_Number] = []
    forms: list[tuple[_Number, FormLine]] = []
    counts: list[_CountsLine] = []
    tables: list[_TableLine] = []
    wanted: list[tuple[_Number, FormLine]] = []

    def translated(self) -> EpochLine:
        """Return the same epoch as it is written now."""
        return EpochLine.model_construct(
            epoch=self.epoch,
            seconds=self.seconds,
            new=self.new,
            came=[(key, [number]) for number, key in self.came],
            went=differences(self.went),
            forms=[(form, [number]) for number, form in self.forms],
            counts=self.counts,
            tables=self.tables,
            wanted=[(form, [number]) for number, form in self.wanted],
        )


def differences(numbers: Iterable[int]) -> SitesLine:
    """Return the numbers of some sites as they are written."""
    rising = sorted(numbers)
    return [number - before for before, number in zip([0, *rising], rising, strict=False)]


def line_of_key(key: Key | None) -> KeyLine | None:
    """Return a key as it is written."""
    return None if key is None else (int(key.register), key.shift, key.bits)


def key_of(line: KeyLine | None) -> Key | None:
    """Return the key that :func:`line_of_key` wrote."""
    return None if line is None else Key(Register(line[0]), line[1], line[2])


def line_of_form(form: Form, number: Callable[[GuestVirtual], int]) -> FormLine:
    """Return a form as it is written."""
    if form == ORIGINAL:
        return FormLine(kind="original")
    assert isinstance(form, (Chain, Tree, Keyed, LearnKeys))
    targets = [number(target) for target in form.targets]
    match form:
        case Chain(counts_hits=counts_hits):
            return FormLine(kind="audit" if counts_hits else "chain", targets=targets)
        case Tree():
            return FormLine(kind="tree", targets=targets)
        case Keyed(key, leaves):
            indices = [index for index, _ in leaves]
            return FormLine(kind="keyed", targets=targets, indices=indices, key=line_of_key(key))
        case LearnKeys(key):
            return FormLine(kind="learn-keys", key=line_of_key(key))


def form_of(line: FormLine, at: Callable[[int], GuestVirtual]) -> Form:
    """Return the form that :func:`line_of_form` wrote.

    :param at: Returns the address of a number.
    :raise ValueError: there is no such form.
    """
    targets = tuple(at(number) for number in line.targets)
    key = key_of(line.key)
    if key is None:
        match line.kind:
            case "original":
                return ORIGINAL
            case "chain" | "audit":
                return Chain(targets, counts_hits=line.kind == "audit")
            case "tree":
                return Tree(targets)
    elif line.kind == "keyed" and len(set(line.indices)) == len(line.indices) == len(targets):
        return Keyed(key, tuple(zip(line.indices, targets, strict=True)))
    elif line.kind == "learn-keys":
        return LearnKeys(key)
    raise ValueError(f"a form of kind {line.kind} is incomplete")
