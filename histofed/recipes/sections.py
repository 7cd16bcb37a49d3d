"""Check the experiment's `[config]` table against a recipe's model, with one sentence per mistake."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from histofed.base.errors import BadData
from histofed.base.ids import Json, canonical

SectionT = TypeVar("SectionT", bound="Section")


class Section(BaseModel):
    """A table of an experiment: unknown keys are errors, nothing is converted, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def check_can_begin(self) -> None:
        """Something new may be begun with it. Raises `BadData`.

        No part of `parse_section`: what an older release has begun is parsed for as long as its state lives.
        """


def parse_section(
    model: type[SectionT], section: Mapping[str, Json], what: str = "the experiment's [config] table"
) -> SectionT:
    """The table as `model`. Raises `BadData` naming every wrong key, and the nearest known one for an unknown key.

    `what` the table is to whoever wrote it, for the sentence.
    """
    try:
        # from JSON, because pydantic's strict mode then takes a list for a tuple and still no "64" for 64
        return model.model_validate_json(canonical(section))
    except ValidationError as error:
        mistakes = "; ".join(_mistake(model, dict(one)) for one in error.errors(include_url=False))
        raise BadData(f"{what} is wrong: {mistakes}") from error


def _mistake(model: type[BaseModel], error: Mapping[str, object]) -> str:
    place = error["loc"]
    assert isinstance(place, tuple)
    key = ".".join(map(str, place))
    if error["type"] != "extra_forbidden":
        message = str(error["msg"]).removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    near = difflib.get_close_matches(str(place[-1]), model.model_fields, n=1)
    return f"{key} is not a key of this recipe" + (f" (did you mean {near[0]}?)" if near else "")
