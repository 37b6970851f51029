"""What the values of lora-ops.yaml are made of: names, numbers, durations, and strict sections."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from lora_ops.units import fraction, seconds

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


def _name(text: str) -> str:
    """A name becomes part of keys, pools and queues."""
    if not _NAME.fullmatch(text):
        raise ValueError(f"`{text}` is not a name; write 1 to 40 of a-z, 0-9 and - (not first or last)")
    return text


def _no_bool(value: object) -> object:
    """`yes` is a boolean to YAML, and a boolean a number to pydantic."""
    if isinstance(value, bool):
        raise ValueError(f"a number is wanted, not {str(value).lower()}")
    return value


def _share(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError("it lies between 0% and 100%, usually 30%")
    return value


def _confidence(value: float) -> float:
    if not 0.5 <= value < 1:
        raise ValueError("a confidence lies between 50% and 100%, usually 99%")
    return value


Seconds = Annotated[float, BeforeValidator(seconds)]
Fraction = Annotated[float, BeforeValidator(fraction)]
Share = Annotated[Fraction, AfterValidator(_share)]
Confidence = Annotated[Fraction, AfterValidator(_confidence)]
Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_no_bool)]
Name = Annotated[str, AfterValidator(_name)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
