"""The daemons' configuration models: pydantic says what is valid, pydantic-settings reads the environment.

Imported by `config.load` on demand: the two libraries cost a third of a second at start, which a daemon does not notice.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsError

from histofed.base.ids import Json
from histofed.base.schema import Keys, Problem, Problems

M = TypeVar("M", bound=BaseModel)


class Section(BaseModel):
    """A table of a configuration file: frozen, and unknown keys are errors. Daemons derive theirs from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PydanticSchema(Generic[M]):
    """A pydantic model, whose nested models are the tables."""

    def __init__(self, model: type[M]) -> None:
        if issubclass(model, BaseSettings):
            # a BaseSettings reads the environment by itself whenever it is built: two readers with two opinions
            raise TypeError(f"{model.__name__} must be a plain pydantic model; config.load applies the sources")
        self._model = model

    @property
    def keys(self) -> Keys:
        return _keys(self._model)

    def environment(self, environ: Mapping[str, str]) -> Mapping[str, Json]:
        try:
            return cast("Mapping[str, Json]", _Environment(self._model, environ)())
        except SettingsError as error:
            raise Problems((Problem((), f"{error}: a list or a table is written as JSON"),)) from error

    def build(self, values: Mapping[str, Json]) -> M:
        try:
            return self._model.model_validate(values)
        except ValidationError as error:
            raise Problems(tuple(_problem(item) for item in error.errors(include_url=False))) from error


class _Environment(EnvSettingsSource):
    """HISTOFED_<SECTION>__<KEY>, from a mapping instead of the process's own environment."""

    def __init__(self, model: type[BaseModel], environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(
            cast("type[BaseSettings]", model),  # it reads only `model_fields` and `model_config`
            case_sensitive=False,
            env_prefix="HISTOFED_",
            env_nested_delimiter="__",
        )

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._environ.items()}


def _problem(error: Any) -> Problem:
    """A pydantic error in our words; its message says what is expected."""
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "tuple_type":
        message = 'write a list, ["..."]'
    return Problem(
        key=tuple(error["loc"]),
        expected=message[:1].lower() + message[1:],
        missing=error["type"] == "missing",
    )


def _keys(model: type[BaseModel]) -> Keys:
    return {name: _nested(field.annotation) for name, field in model.model_fields.items()}


def _nested(annotation: object) -> Keys | None:
    """The keys of a nested table; None for a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _keys(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        tables = [keys for keys in map(_nested, typing.get_args(annotation)) if keys is not None]
        return tables[0] if len(tables) == 1 else None
    return None
