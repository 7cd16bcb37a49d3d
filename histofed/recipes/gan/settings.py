"""What a run in one place trains: a preset or a file, and what the caller changes in it. Pure, no torch.

A run of a preset of the paper is the paper's only when nothing was changed; every departure is kept as a sentence, because a
number without them would be read as the paper's.
"""

from __future__ import annotations

import copy
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from histofed.base.errors import BadData, ConfigError, NotFound, UsageError
from histofed.base.experiment import parse_experiment
from histofed.base.hashing import sha256_file
from histofed.base.ids import Json
from histofed.base.toml import read
from histofed.recipes.gan.config import GanConfig
from histofed.recipes.presets import Preset
from histofed.recipes.sections import parse_section

OFF: Final = "off"
"""As a value: the option is left out."""
MOST_STEPS: Final = 1_000_000
"""As `GanConfig` has it."""
_PAPER: Final = "paper/"
_BARE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+./-]*\Z")

Table: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Changes:
    """What the caller wants otherwise."""

    steps: int | None = None
    epochs: int | None = None
    values: Mapping[str, Json] = field(default_factory=dict)
    """By dotted key of the recipe's table; `off` leaves the option out."""
    random_start: bool = False
    """Start the discriminator at random where its weights file is not at hand."""
    weights: Path | None = None
    weights_sha256: str | None = None


@dataclass(frozen=True)
class Settings:
    """What is to be trained, as far as it is known before the tiles are."""

    name: str
    """The preset's name, or the file's."""
    preset: str | None
    table: Mapping[str, Json]
    """The recipe's table without `steps`."""
    steps: int | None
    epochs: int | None
    """Passes over the tiles, where `steps` is None."""
    departures: tuple[str, ...] = ()
    """In which way this is not what the preset says, a sentence each."""
    provenance: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    """Of each value of the preset: its kind and the reason."""

    def draft(self) -> GanConfig:
        """The settings with as many steps as are allowed, to be checked before any tile is read. Raises `BadData`."""
        return self._config(self.steps or MOST_STEPS)

    def config(self, tiles: int) -> GanConfig:
        """The settings for a run over so many tiles; the last batch of the last epoch is filled up. Raises `BadData`."""
        if self.steps is not None:
            return self._config(self.steps)
        assert self.epochs is not None, "from_preset and from_file leave one of the two"
        return self._config(math.ceil(self.epochs * tiles / self.draft().batch))

    def not_the_papers(self) -> tuple[str, ...]:
        """Why a complete run of these settings is none of the paper's runs; empty where it is one."""
        if self.preset is None or not self.preset.startswith(_PAPER):
            return ("the settings are not a preset of the paper",)
        return self.departures

    def _config(self, steps: int) -> GanConfig:
        return parse_section(GanConfig, {**self.table, "steps": steps}, "the table of settings")


def from_preset(preset: Preset, changes: Changes) -> Settings:
    """A preset with the caller's changes.

    Raises `NotFound` where it starts from a weights file that is not given, `BadData`, `UsageError`.
    """
    wanted = preset.wants_weights
    weights = _pinned(changes, wanted.sha256_prefix if wanted is not None else None)
    if wanted is not None and weights is None and not changes.random_start:
        raise NotFound(
            f"preset {preset.name} starts from {wanted.file} ({wanted.model}; its SHA-256 begins with "
            f"{wanted.sha256_prefix}); give it with --weights FILE, or start at random with --init random, which is "
            "recorded as a departure"
        )
    table = dict(preset.recipe_table(steps=1, weights=weights))
    del table["steps"]
    table, changed = _changed(table, changes.values)
    steps, epochs, length = _length(changes, preset.steps, preset.epochs)
    return Settings(
        name=preset.name,
        preset=preset.name,
        table=table,
        steps=steps,
        epochs=epochs,
        departures=(*_in_one_place(preset), *preset.departures(weights), *changed, *length),
        provenance={key: {"kind": found.kind, "why": found.why} for key, found in preset.provenance.items()},
    )


def from_file(path: Path, changes: Changes) -> Settings:
    """The settings of a TOML file: its `[recipe]` table, or the `[config]` table of an experiment of the recipe `gan`.

    Raises `ConfigError` for a file that cannot be read, `BadData`, `UsageError`.
    """
    table = _table_of(path)
    discriminator = table.get("discriminator")
    if isinstance(discriminator, dict) and (weights := _pinned(changes, None)) is not None:
        discriminator["weights"] = {"path": weights[0], "sha256": weights[1]}
    elif isinstance(discriminator, dict) and changes.random_start:
        discriminator.pop("weights", None)
    own = table.pop("steps", None)
    if own is not None and (not isinstance(own, int) or isinstance(own, bool)):
        raise BadData(f"{path}: steps is a whole number")
    table, changed = _changed(table, changes.values)
    steps, epochs, length = _length(changes, own, None)
    return Settings(path.stem, None, table, steps, epochs, (*changed, *length))


def parse_value(text: str) -> Json:
    """The value of `--set KEY=VALUE`, written as in TOML; a word needs no quotes. Raises `UsageError`."""
    try:
        found = tomllib.loads(f"value = {text}")
    except ValueError:
        found = {"value": text} if _BARE.match(text) else {}
    if found.keys() != {"value"} or not _is_json(found["value"]):
        raise UsageError(f"--set: {text!r} is no value; write it as in TOML: 2, 1e-4, true, \"word\", ['A', 'B'] or off")
    value: Json = found["value"]
    return value


def _in_one_place(preset: Preset) -> Sequence[str]:
    if preset.federation is None or not preset.name.startswith(_PAPER):
        return ()
    return (f"trained in one place, not in the preset's {preset.federation['rounds']} rounds over sites",)


def _table_of(path: Path) -> Table:
    document = copy.deepcopy(dict(read(path).values))
    if isinstance(document.get("recipe"), str):
        file = parse_experiment(path.read_text(encoding="utf-8")).file
        if file.recipe != "gan":
            raise BadData(f"{path} is an experiment of the recipe {file.recipe!r}; only 'gan' trains in one place")
        return copy.deepcopy(dict(file.recipe_config))
    table = document.pop("recipe", None)
    if not isinstance(table, dict) or document:
        extra = f"; it has {', '.join(sorted(document))}" if document else ""
        raise ConfigError(f"{path}: a file of settings has one table [recipe] (or is an experiment file){extra}")
    return table


def _pinned(changes: Changes, prefix: str | None) -> tuple[str, str] | None:
    """The weights file with its SHA-256, which the caller pins, or which the preset knows the beginning of."""
    path, sha256 = changes.weights, changes.weights_sha256
    if path is None:
        if sha256 is not None:
            raise UsageError("--weights-sha256 belongs to --weights FILE")
        return None
    if changes.random_start:
        raise UsageError("--init random and --weights exclude each other")
    if sha256 is not None:
        return str(path.absolute()), sha256.lower()
    if prefix is None:
        raise UsageError("--weights needs --weights-sha256 HEX: a weights file counts only with the digest that is expected")
    try:
        found = sha256_file(path)
    except OSError as error:
        raise NotFound(f"--weights {path}: cannot be read ({error.strerror}); check the name") from error
    if not found.startswith(prefix):
        raise BadData(
            f"--weights {path}: its SHA-256 is {found} and should begin with {prefix}; get the published file, or pin this "
            "one with --weights-sha256, which is recorded as a departure"
        )
    return str(path.absolute()), found


def _changed(table: Table, values: Mapping[str, Json]) -> tuple[Table, list[str]]:
    """The table with `values` set by dotted key, and a sentence for each that is other than before."""
    table, told = copy.deepcopy(table), list[str]()
    for key, value in values.items():
        *path, last = key.split(".")
        if key == "steps":
            raise UsageError("--set steps: use --steps N or --epochs N")
        inner = table
        for depth, step in enumerate(path):
            below = inner.setdefault(step, {})
            if not isinstance(below, dict):
                raise UsageError(f"--set {key}: {'.'.join(path[: depth + 1])} is no table")
            inner = below
        before = inner.get(last)
        if value == OFF:
            inner.pop(last, None)
        else:
            inner[last] = value
        if inner.get(last) != before:
            told.append(f"{key} is {_text(inner.get(last))} instead of {_text(before)}")
    return table, told


def _length(changes: Changes, steps: int | None, epochs: int | None) -> tuple[int | None, int | None, Sequence[str]]:
    """How long to train, and a sentence where that is other than what the settings say."""
    if changes.steps is not None and changes.epochs is not None:
        raise UsageError("--steps and --epochs exclude each other")
    for flag, number in (("steps", changes.steps), ("epochs", changes.epochs)):
        if number is not None and number < 1:
            raise UsageError(f"--{flag} is at least 1")
    wanted = (changes.steps, changes.epochs)
    if wanted == (None, None):
        if steps is None and epochs is None:
            raise UsageError("the settings say nothing of how long to train; add steps to them, or give --steps or --epochs")
        return steps, epochs, ()
    if wanted == (steps, epochs) or (steps, epochs) == (None, None):
        return *wanted, ()
    return *wanted, (f"trained for {_duration(*wanted)} instead of {_duration(steps, epochs)}",)


def _duration(steps: int | None, epochs: int | None) -> str:
    return f"{steps} steps" if steps is not None else f"{epochs} epochs"


def _text(value: Json) -> str:
    return "nothing" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _is_json(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(map(_is_json, value.values()))
    return isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
