"""What a configuration may contain, behind one small interface, with two kinds of model.

- `PlainSchema`: a frozen dataclass, for the operator's command line. Importing pydantic takes longer than `histofed status`
  may take altogether, and that command needs six keys.
- `PydanticSchema` (`schema_pydantic.py`, imported on demand): what the daemons use.

Called by `config.py` only.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, Protocol, TypeAlias, TypeVar, cast

from histofed.base.ids import Json
from histofed.base.toml import KeyPath

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Keys: TypeAlias = "dict[str, Keys | None]"
"""Which keys exist: a table's own keys, or None for a value (and for a table with free keys)."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One value that cannot be used."""

    key: KeyPath
    expected: str
    """What would be right, or what is wrong, in words that follow "is not allowed: "."""
    missing: bool = False
    """There is no value at all, and no default."""


class Problems(Exception):
    """Everything that is wrong with the values; `config.py` turns it into a `ConfigError`."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems


class Schema(Protocol[T_co]):
    """A model of a configuration."""

    @property
    def keys(self) -> Keys:
        """Every key that may be set."""
        ...

    def environment(self, environ: Mapping[str, str]) -> Mapping[str, Json]:
        """The values that the variables HISTOFED_<SECTION>__<KEY> set. Raises `Problems`."""
        ...

    def build(self, values: Mapping[str, Json]) -> T_co:
        """The configuration, with defaults where `values` says nothing. Raises `Problems`."""
        ...


class PlainSchema(Generic[T]):
    """A frozen dataclass whose fields are str, int, float, bool, Path, tuple[str, ...], another such class, or one of
    these or None."""

    def __init__(self, model: type[T]) -> None:
        self._model = model

    @property
    def keys(self) -> Keys:
        return _keys(self._model)

    def environment(self, environ: Mapping[str, str]) -> Mapping[str, Json]:
        values: dict[str, Json] = {}
        for name, text in environ.items():
            path = name.removeprefix("HISTOFED_").lower().split("__")
            kind: object = self._model
            for key in path:
                kind = _fields(kind).get(key) if dataclasses.is_dataclass(kind) else None
            if not name.startswith("HISTOFED_") or kind is None or dataclasses.is_dataclass(kind):
                continue
            table = values
            for key in path[:-1]:
                table = cast("dict[str, Json]", table.setdefault(key, {}))
            table[path[-1]] = _from_text(kind, text)
        return values

    def build(self, values: Mapping[str, Json]) -> T:
        problems: list[Problem] = []
        built = _table(self._model, values, (), problems)
        if problems:
            raise Problems(tuple(problems))
        return cast("T", built)


def _fields(model: object) -> dict[str, object]:
    """The fields of a dataclass and their types, `X | None` as X."""
    hints = typing.get_type_hints(model)
    return {field.name: _without_none(hints[field.name]) for field in dataclasses.fields(cast("type[typing.Any]", model))}


def _without_none(hint: object) -> object:
    if isinstance(hint, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    return hint


def _keys(model: object) -> Keys:
    return {name: _keys(kind) if dataclasses.is_dataclass(kind) else None for name, kind in _fields(model).items()}


def _from_text(kind: object, text: str) -> Json:
    """A variable's text as the TOML value that it stands for; what does not fit stays text and is refused later."""
    if kind in (int, float, bool) or typing.get_origin(kind) is tuple:
        try:
            return cast("Json", json.loads(text))
        except ValueError:
            return text
    return text


def _table(model: object, values: Mapping[str, Json], at: KeyPath, problems: list[Problem]) -> object:
    """An instance of the dataclass, or None after adding to `problems`."""
    given: dict[str, object] = {}
    for field in dataclasses.fields(cast("type[typing.Any]", model)):
        kind = _fields(model)[field.name]
        key = (*at, field.name)
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.name in values:
            given[field.name] = _value(kind, values[field.name], key, problems)
        elif dataclasses.is_dataclass(kind) and no_default:
            given[field.name] = _table(kind, {}, key, problems)
        elif no_default:
            problems.append(Problem(key, "it has no default", missing=True))
    return None if problems else cast("typing.Callable[..., object]", model)(**given)


_EXPECTED: dict[object, str] = {
    str: "a text in quotes is expected",
    Path: "a path in quotes is expected",
    int: "a whole number is expected",
    float: "a number is expected",
    bool: "true or false is expected",
}


def _value(kind: object, value: Json, at: KeyPath, problems: list[Problem]) -> object:
    """The value as the type that the field has."""
    if dataclasses.is_dataclass(kind):
        if isinstance(value, Mapping):
            return _table(kind, value, at, problems)
        problems.append(Problem(at, "a table is expected"))
    elif kind in (str, Path) and isinstance(value, str):
        return Path(value) if kind is Path else value
    elif kind in (int, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if kind is float else value
    elif (kind is float and isinstance(value, float)) or (kind is bool and isinstance(value, bool)):
        return value
    elif typing.get_origin(kind) is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    else:
        problems.append(Problem(at, _EXPECTED.get(kind, "a list of texts is expected")))
    return None
