"""The section ``[learning]`` of a guest's file, checked by pydantic; traces carry it too."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from optpolined.learning.cost import Costs
from optpolined.learning.errors import SettingError
from optpolined.learning.settings import ContinuousSettings, LearningSettings, PeriodicSettings
from optpolined.learning.shape import ShapeSettings
from optpolined.learning.strategies import PERIODIC_BEFORE, StrategyName

__all__ = ("CensusConfig", "LearningConfig", "Section", "has_former_names")


class Section(BaseModel):
    """A table of the guest's file: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _checked(value: object, build: ValidatorFunctionWrapHandler) -> object:
    """Pass the complaint of settings that check themselves to pydantic, which knows the section."""
    try:
        return build(value)
    except SettingError as error:
        raise PydanticCustomError("setting", "{reason}", {"reason": str(error)}) from error


_CHECKED = WrapValidator(_checked)


class CensusConfig(Section):
    """When all indirect calls of the guest are counted, and for how long."""

    enabled: bool = True
    """Learn by census where the guest allows it; else each site learns by a stub of its own."""
    first_milliseconds: Annotated[int, Field(ge=50, le=10_000)] = 300
    """The length of each epoch of the first census."""
    epoch_milliseconds: Annotated[int, Field(ge=20, le=10_000)] = 100
    """The length of each epoch of the later ones."""
    epochs_max: Annotated[int, Field(ge=1, le=100)] = 5
    """A census has one epoch, and so many at most while sites learn from it."""
    interval_seconds: Annotated[float, Field(ge=0.5, le=3600)] = 5.0
    """Between the starts of two censuses."""
    duty_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """The largest part of the time that a census may run, but for the first one."""


class LearningConfig(Section):
    """When a target is worth it, and in which form."""

    strategy: StrategyName = StrategyName.HYSTERESIS
    epoch_milliseconds: Annotated[int, Field(ge=50, le=60_000)] = 500
    audit_milliseconds: Annotated[int, Field(ge=100, le=60_000)] = 2000
    census: CensusConfig = CensusConfig()
    hysteresis: Annotated[LearningSettings, _CHECKED] = LearningSettings()
    continuous: Annotated[ContinuousSettings, _CHECKED] = ContinuousSettings()
    periodic: Annotated[PeriodicSettings, _CHECKED] = PeriodicSettings()
    shape: Annotated[ShapeSettings, _CHECKED] = ShapeSettings()
    costs: Annotated[Costs, _CHECKED] = Costs()

    @model_validator(mode="before")
    @classmethod
    def _rename_periodic(cls, section: object) -> object:
        """Take the section of ``periodic`` by its name in older traces and guests' files."""
        # Where both names are there, the older one stays and is an unknown key.
        if (
            isinstance(section, Mapping)
            and PERIODIC_BEFORE in section
            and "periodic" not in section
        ):
            section = dict(section)
            section["periodic"] = section.pop(PERIODIC_BEFORE)
        return section


def has_former_names(section: object) -> bool:
    """Return whether a raw section ``[learning]`` calls ``periodic`` by its former name."""
    return isinstance(section, Mapping) and (
        PERIODIC_BEFORE in section or section.get("strategy") == PERIODIC_BEFORE
    )
