"""A preset as an experiment file that an operator can submit: each value with a comment on where it comes from.

What a preset cannot know is where a site keeps its weights file and that file's whole SHA-256; both are left to be filled
in, and the file says so. `histofed presets show NAME --toml` prints it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from histofed.base.errors import BadData
from histofed.base.ids import Json
from histofed.recipes.presets.preset import Preset, Provenance

_TABLES = ("sampling", "round", "aggregation")


def experiment_toml(preset: Preset) -> str:
    """The file's text. Raises `BadData` for a preset without a federation."""
    federation = preset.federation
    if federation is None:
        raise BadData(
            f"preset {preset.name} is trained at one place, so there is no experiment file of it; "
            "`histofed presets` shows which presets have a federation"
        )
    lines = [*_head(preset, federation), ""]
    lines += [
        f"name = {_toml(preset.name.replace('/', '-'))}",
        'recipe = "gan"',
        _line(preset, "rounds", "federation.rounds"),
    ]
    for name in _TABLES:
        lines += _table(preset, name, f"federation.{name}")
    lines += ["", "[config]", _line(preset, "steps", "federation.local_steps"), *_values(preset, "recipe")]
    for name, below in preset.recipe.items():
        if isinstance(below, Mapping):
            lines += _table(preset, f"config.{name}", f"recipe.{name}")
            lines += _weights(preset) if name == "discriminator" else ()
    return "\n".join(lines) + "\n"


def _head(preset: Preset, federation: Mapping[str, Json]) -> Iterator[str]:
    yield f"# {preset.name}: {preset.summary}."
    yield "# Behind each value: whether the paper states it, it is derived or reconstructed, or it is our own choice."
    partition = federation.get("partition")
    if isinstance(partition, Mapping):
        options = "".join(f" --{key} {partition[key]}" for key in ("sites", "ratio") if key in partition)
        yield f"# Sites made of one folder of tiles: histofed data split DIR OUT --by {partition['method']}{options}"
    if preset.wants_weights is not None:
        yield f"# As it stands, {preset.departures()[0]}:"
        yield "# it is then not the paper's experiment. With that file at every site, fill in `weights` below."


def _table(preset: Preset, header: str, prefix: str) -> list[str]:
    return ["", f"[{header}]", *_values(preset, prefix)]


def _values(preset: Preset, prefix: str) -> Iterator[str]:
    """Every value directly below a key; what is left out, as a comment."""
    for key in preset.provenance:
        above, _, name = key.rpartition(".")
        if above == prefix:
            yield _line(preset, name, key)


def _line(preset: Preset, name: str, key: str) -> str:
    value, source = preset.value(key), preset.provenance[key]
    return f"# no {name}{_why(source)}" if value is None else f"{name} = {_toml(value)}  #{_why(source)[1:]}"


def _why(source: Provenance) -> str:
    return f": {source.kind}: {source.why}"


def _weights(preset: Preset) -> Iterator[str]:
    wanted = preset.wants_weights
    if wanted is not None:
        yield f'# weights = {{ path = "/srv/weights/{wanted.file}", sha256 = "{wanted.sha256_prefix}..." }}'


def _toml(value: Json) -> str:
    """A scalar or a list as TOML. JSON's strings and lists are TOML's too, as long as nothing is null."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
