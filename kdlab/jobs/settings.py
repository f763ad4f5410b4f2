"""What all sections of a recipe share: the base of their models and the kinds of numbers in them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, Strict

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Channels = Annotated[PositiveInt, Field(le=8192)]
Side = Annotated[PositiveInt, Field(le=16_384)]
"""Of an image in pixels. This bound and those of sizes below are beyond what can be meant: a slip of
the keyboard is told, before it fills the memory of whatever builds it."""
Listed = Strict(False)  # a YAML list is read as a tuple; its entries stay strict


class Settings(BaseModel):
    """One section of a recipe: frozen, no unknown keys, no value of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
