"""The settings of each method, until its line in the table has them."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.unlearning.methods.table import METHODS


class _Own(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Uno(_Own):
    penalty: float = Field(0.01, ge=0, description="lambda of grad cos^2")


class _UnoS(_Uno):
    surgery_every: int = Field(2, ge=1, description="every k-th step is a surgery step")


class _Esd(_Own):
    eta: float = Field(3.0, ge=0, description="how far the forgotten label is steered away from itself")


class _Salun(_Own):
    saliency: float = Field(0.5, gt=0, le=1, description="share of the trained parameters that move")


SETTINGS: dict[str, type[BaseModel]] = {
    **dict.fromkeys(METHODS, _Own),
    "uno": _Uno,
    "uno_s": _UnoS,
    "esd": _Esd,
    "salun": _Salun,
}


def method_settings(name: str, values: Mapping[str, Any]) -> tuple[Any, float]:
    """The method's own settings, and eta."""
    kind = SETTINGS[name]
    own = kind.model_validate({key: value for key, value in values.items() if key in kind.model_fields})
    return own, getattr(own, "eta", 3.0)
