"""A wrong `[config]` table is refused in one sentence that names the key."""

from __future__ import annotations

from typing import Self

import pytest
from pydantic import Field, model_validator

from histofed.base.errors import BadData
from histofed.recipes.sections import Section, parse_section


class _Inner(Section):
    name: str


class _Table(Section):
    steps: int = Field(ge=1)
    names: tuple[str, ...] = ()
    rate: float = 1.0
    inner: _Inner | None = None

    @model_validator(mode="after")
    def _has_a_rate(self) -> Self:
        if not self.rate:
            raise ValueError("rate: nothing moves at 0")
        return self


def test_lists_become_tuples_and_whole_numbers_floats() -> None:
    assert parse_section(_Table, {"steps": 2, "names": ["a"], "rate": 1}) == _Table(steps=2, names=("a",), rate=1.0)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"steps": 2, "step": 3}, r"step is not a key of this recipe \(did you mean steps\?\)"),
        ({"steps": 2, "zzz": 3}, r"zzz is not a key of this recipe$"),
        ({"steps": "2"}, r"^the experiment's \[config\] table is wrong: steps: Input should be a valid integer"),
        ({"steps": True}, "steps: Input should be a valid integer"),
        ({"steps": 0}, "steps: Input should be greater than or equal to 1"),
        ({}, "steps: Field required"),
        ({"steps": 0, "rate": "x"}, "steps: .*; rate: "),
        ({"steps": 1, "inner": {"name": 3}}, "inner.name: "),
        ({"steps": 1, "rate": float("nan")}, "not finite"),
        ({"steps": 1, "rate": 0}, r"^the experiment's \[config\] table is wrong: rate: nothing moves at 0$"),
    ],
)
def test_mistakes_are_named(section: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadData, match=sentence):
        parse_section(_Table, section)  # type: ignore[arg-type]  # wrong on purpose
