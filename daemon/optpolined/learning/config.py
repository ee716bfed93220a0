"""The section ``[learning]`` of a guest's file, checked by pydantic; traces carry it too."""

from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from optpolined.learning.cost import Costs
from optpolined.learning.errors import SettingError
from optpolined.learning.settings import ContinuousSettings, LearningSettings, PeriodicSettings
from optpolined.learning.shape import ShapeSettings
from optpolined.learning.strategies import StrategyName

__all__ = ("LearningConfig", "Section")


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


class LearningConfig(Section):
    """When a target is worth it, and in which form."""

    strategy: StrategyName = StrategyName.HYSTERESIS
    epoch_milliseconds: Annotated[int, Field(ge=50, le=60_000)] = 500
    audit_milliseconds: Annotated[int, Field(ge=100, le=60_000)] = 2000
    hysteresis: Annotated[LearningSettings, _CHECKED] = LearningSettings()
    continuous: Annotated[ContinuousSettings, _CHECKED] = ContinuousSettings()
    epoch: Annotated[PeriodicSettings, _CHECKED] = PeriodicSettings()
    shape: Annotated[ShapeSettings, _CHECKED] = ShapeSettings()
    costs: Annotated[Costs, _CHECKED] = Costs()
