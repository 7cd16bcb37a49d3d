"""One configuration from four sources, each value with its origin: defaults < files < environment < flags.

Files are `NAME.toml`, then `conf.d/*.toml` beside it, then `conf.d/NAME/*.toml`, each in the order of their names; tables
are merged, later files win. A host that runs both daemons keeps what only one of them knows in that daemon's own folder.
The environment is HISTOFED_<SECTION>__<KEY>. A key that nobody knows is an error with file, line and the nearest key that
exists, because a misspelt limit that is silently ignored is the most expensive kind of typing error.

Secrets do not belong in here: `*_file` keys name files that hold them. Called by the command lines and on SIGHUP.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

from histofed.base.errors import ConfigError
from histofed.base.ids import Json
from histofed.base.schema import Keys, PlainSchema, Problem, Problems, Schema
from histofed.base.toml import KeyPath, TomlFile, files, read

T = TypeVar("T")

PREFIX: Final = "HISTOFED_"
NOT_SETTINGS: Final = frozenset({"HISTOFED_CONFIG", "HISTOFED_FAILPOINTS", "HISTOFED_TILES"})
"""Variables with our prefix that belong to somebody else."""
_A_SLIP: Final = 0.85
"""How alike (`difflib`) two names are of which one is the other misspelt; `aggregator_port` and `aggregator` are at 0.8."""


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A configuration that is valid as a whole."""

    config: T
    sources: Mapping[str, str]
    """Where each key that is not a default was set: `agent.toml:12`, `environment HISTOFED_…`, `flag --…`."""


@dataclass(frozen=True)
class Setting:
    """One effective value, for `check`."""

    key: str
    value: str
    source: str


@dataclass(frozen=True)
class _Layer:
    """One source's values, and how to name the place of a key in it."""

    values: Mapping[str, Json]
    file: TomlFile | None
    origin: str

    def place(self, key: KeyPath) -> str:
        if self.file is not None:
            line = self.file.line(key)
            return f"{self.file.path}:{line}" if line else str(self.file.path)
        names = [str(part) for part in key if isinstance(part, str)]
        if self.origin == "environment":
            return f"environment {PREFIX}{'__'.join(names).upper()}"
        return f"flag --{'-'.join(names).replace('_', '-')}"


def load(
    model: type[T],
    *,
    name: str,
    path: Path | None,
    flags: Mapping[str, Json],
    environ: Mapping[str, str] | None = None,
) -> Loaded[T]:
    """Read, merge and check the configuration `name` (`agent`, `aggregator`, ...).

    `model` is a pydantic model (see `schema_pydantic.Section`) or a frozen dataclass (`schema.PlainSchema`); `flags` have
    dotted keys, None stands for "not given". Raises `ConfigError`.
    """
    schema = _schema(model)
    surroundings = os.environ if environ is None else environ
    layers = [
        *_file_layers(name, path, schema.keys),
        _environment_layer(schema, surroundings),
        _flag_layer(flags, schema.keys),
    ]
    merged: dict[str, Json] = {}
    sources: dict[str, str] = {}
    for layer in layers:
        _merge(merged, layer.values)
        sources.update((_dotted(key), layer.place(key)) for key in _leaves(layer.values, schema.keys))
    try:
        config = schema.build(merged)
    except Problems as found:
        raise ConfigError(_sentences(found.problems, layers, merged, name, path)) from found
    return Loaded(config, sources)


def explain(loaded: Loaded[Any]) -> list[Setting]:
    """Every effective value and where it comes from, by key."""
    values = _dump(loaded.config)
    return [
        Setting(key, _text(value), next((loaded.sources[at] for at in _around(key) if at in loaded.sources), "default"))
        for key, value in sorted(_flat(values))
    ]


def changed(old: Loaded[T], new: Loaded[T]) -> tuple[str, ...]:
    """The keys whose values differ, for the log line of a reload."""
    before, after = dict(_flat(_dump(old.config))), dict(_flat(_dump(new.config)))
    return tuple(sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key)))


def _schema(model: type[T]) -> Schema[T]:
    if dataclasses.is_dataclass(model):
        return PlainSchema(cast("type[T]", model))
    from histofed.base.schema_pydantic import PydanticSchema

    return cast("Schema[T]", PydanticSchema(cast("Any", model)))


def _file_layers(name: str, path: Path | None, keys: Keys) -> Iterator[_Layer]:
    """The main file, then what is in `conf.d` for all and for `name`; unknown keys end it."""
    if path is None:
        return
    more = path.parent / "conf.d"
    for each in (path, *files(more), *files(more / name)):
        file = read(each)
        layer = _Layer(file.values, file, "file")
        for key, nearest in _unknown(file.values, keys, ()):
            raise ConfigError(f"{layer.place(key)}: {_no_such_key(key, nearest)}")
        yield layer


def _environment_layer(schema: Schema[object], environ: Mapping[str, str]) -> _Layer:
    ours = {name: value for name, value in environ.items() if name.startswith(PREFIX) and name not in NOT_SETTINGS}
    for name in sorted(ours):
        path = name.removeprefix(PREFIX).lower().split("__")
        # another program's variable may share the prefix (Kubernetes makes some of each service's name), but neither is it
        # in one of our sections nor a letter away from one of our settings
        if path[0] in schema.keys or difflib.get_close_matches(path[0], schema.keys, 1, _A_SLIP):
            _check_variable(name, path, schema.keys)
    try:
        return _Layer(schema.environment(ours), None, "environment")
    except Problems as found:
        raise ConfigError(f"environment: {found.problems[0].expected}") from found


def _check_variable(name: str, path: Sequence[str], keys: Keys) -> None:
    table: Keys | None = keys
    for depth, part in enumerate(path):
        if table is None:
            return  # inside a table with free keys
        if part not in table:
            near = difflib.get_close_matches(part, table, 1)
            hint = "__".join([*path[:depth], near[0]]).upper() if near else ""
            raise ConfigError(
                f"environment {name}: there is no such setting"
                + (f"; did you mean {PREFIX}{hint}?" if hint else f"; known here: {', '.join(sorted(table))}")
            )
        table = table[part]


def _flag_layer(flags: Mapping[str, Json], keys: Keys) -> _Layer:
    values: dict[str, Json] = {}
    for name, value in flags.items():
        if value is None:
            continue
        *tables, key = name.split(".")
        table = values
        for part in tables:
            table = cast("dict[str, Json]", table.setdefault(part, {}))
        table[key] = value
    layer = _Layer(values, None, "flag")
    for key_path, nearest in _unknown(values, keys, ()):
        raise ConfigError(f"{layer.place(key_path)}: {_no_such_key(key_path, nearest)}")
    return layer


def _unknown(values: Mapping[str, Json], keys: Keys, at: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Keys that no model has, each with words about the nearest one."""
    for key, value in values.items():
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1)
            yield (*at, key), f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(keys))}"
        elif (nested := keys[key]) is not None and isinstance(value, Mapping):
            yield from _unknown(value, nested, (*at, key))


def _no_such_key(key: KeyPath, nearest: str) -> str:
    return f"there is no key {_dotted(key)!r}; {nearest}"


def _merge(target: dict[str, Json], values: Mapping[str, Json]) -> None:
    """Tables are merged, everything else is replaced."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            before = target.get(key)
            table: dict[str, Json] = dict(before) if isinstance(before, Mapping) else {}
            _merge(table, value)
            target[key] = table
        else:
            target[key] = value


def _leaves(values: Mapping[str, Json], keys: Keys) -> Iterator[KeyPath]:
    """The keys that a layer sets; a table with free keys counts key by key."""
    for key, value in values.items():
        nested = keys.get(key) or {}
        if isinstance(value, Mapping) and value:
            yield from ((key, *rest) for rest in _leaves(value, nested))
        else:
            yield (key,)


def _sentences(
    problems: Sequence[Problem], layers: Sequence[_Layer], merged: Mapping[str, Json], name: str, path: Path | None
) -> str:
    """One sentence per problem, at most three."""
    told = [_sentence(problem, layers, merged, name, path) for problem in problems[:3]]
    if len(problems) > 3:
        told.append(f"and {len(problems) - 3} more")
    return "; ".join(told)


def _sentence(problem: Problem, layers: Sequence[_Layer], merged: Mapping[str, Json], name: str, path: Path | None) -> str:
    if problem.missing:
        where = str(path) if path else f"the configuration of {name}"
        return f"{where}: {_dotted(problem.key)!r} is missing; set it"
    key, value = _given(merged, problem.key)
    place = next((layer.place(key) for layer in reversed(layers) if _has(layer.values, key)), f"the configuration of {name}")
    # a rule over several keys of a table (or of the whole file) has no single value to show
    shown = "" if isinstance(value, Mapping) else f" = {_text(value)[:60]}"
    return f"{place}: {_dotted(key) or 'it'}{shown} is not allowed: {problem.expected}"


def _given(values: Json, key: KeyPath) -> tuple[KeyPath, Json]:
    """As much of `key` as exists in `values`, and the value there; pydantic adds the branch of a union to its keys."""
    for depth, part in enumerate(key):
        known: Sequence[Json] | Mapping[str, Json] = values if isinstance(values, Mapping | list) else ()
        if part not in (known if isinstance(known, Mapping) else range(len(known))):
            return key[:depth], values
        values = known[part]  # type: ignore[index] # a key for a mapping, a position for a list: checked above
    return key, values


def _has(values: Mapping[str, Json], key: KeyPath) -> bool:
    """Whether a layer says anything about `key`."""
    value: Json = values
    for part in key:
        if not isinstance(part, str) or not isinstance(value, Mapping):
            break
        if part not in value:
            return False
        value = value[part]
    return bool(key)


def _dump(config: Any) -> Mapping[str, Json]:
    """A configuration as plain values."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.asdict(config)
    return cast("Mapping[str, Json]", config.model_dump(mode="json"))


def _flat(values: Mapping[str, Json], at: str = "") -> Iterator[tuple[str, Json]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{at}{key}.")
        else:
            yield at + key, value


def _around(key: str) -> Iterator[str]:
    """The key itself and the tables around it, nearest first."""
    while key:
        yield key
        key = key.rpartition(".")[0]


def _dotted(key: KeyPath) -> str:
    return ".".join(map(str, key))


def _text(value: object) -> str:
    """A value as one would write it in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "not set"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    return f'"{value}"'
