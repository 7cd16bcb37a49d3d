"""Preset files: TOML in which every value stands beside where it comes from, and files that build on others.

A value is one inline table: `batch = { value = 32, reconstructed = "32 to 64" }`; the key that is not `value` is the
kind of provenance. `"off"` as a value means that the option is left out, which needs a reason like any other value. What
else stands in a file is its `summary` and its `base`: the file that it builds on, or several, later ones over earlier ones.

Files in `parts/` are only built on. The name of any other is its path without the ending. Read once per call, from package
data; the resolution itself is pure (`resolve`) and tested with documents in memory.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final, TypeAlias

from histofed.base.errors import BadData
from histofed.base.ids import Json
from histofed.recipes.presets.preset import KINDS, Preset, Provenance, WantedWeights

OFF: Final = "off"
PARTS: Final = "parts/"
_ENDING: Final = ".toml"
_ROOTS: Final = ("epochs", "steps", "fid", "weights", "recipe", "federation")
"""What a preset has values for, in the order in which they are shown."""

Document: TypeAlias = Mapping[str, Json]
Read: TypeAlias = Callable[[str], Document]
"""A file by name. Raises `BadData`."""


@dataclass(frozen=True)
class Entry:
    """One value of a file."""

    value: Json
    """None where it is left out."""
    provenance: Provenance


def names() -> tuple[str, ...]:
    """Every preset, sorted."""
    return tuple(sorted(name for name in _installed() if not name.startswith(PARTS)))


def load(name: str) -> Preset:
    """A preset by name. Raises `BadData` with the nearest name for one that is not installed."""
    installed = _installed()
    known = [one for one in installed if not one.startswith(PARTS)]
    if name not in known:
        # the paper's with "paper/" left out, before any that is spelled alike
        meant = f"paper/{name}".lower()
        near = [meant] if meant in known else difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ":"
        raise BadData(f"there is no preset {name!r}{hint} `histofed presets` lists all")

    def read(wanted: str) -> Document:
        if wanted not in installed:
            raise BadData(f"preset file {wanted!r} is not installed, and another builds on it")
        return tomllib.loads(installed[wanted].read_text(encoding="utf-8"))

    return build(name, read)


def build(name: str, read: Read) -> Preset:
    """The preset in the file `name` and in the files that it builds on. Raises `BadData`."""
    entries = resolve(name, read)
    if unknown := sorted({key.partition(".")[0] for key in entries} - set(_ROOTS)):
        raise BadData(f"preset {name}: {unknown[0]!r} is nothing that a preset has; it has {', '.join(_ROOTS)}")
    values = nested({key: entry.value for key, entry in entries.items() if entry.value is not None})
    summary, recipe, federation = read(name).get("summary"), values.get("recipe"), values.get("federation")
    epochs, steps, fid = values.get("epochs"), values.get("steps"), values.get("fid")
    if not isinstance(summary, str):
        raise BadData(f"preset {name}: say what it is in a line, as its summary")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("discriminator"), dict) or not _counts(recipe.get("batch")):
        raise BadData(f"preset {name}: a recipe has at least a batch, a whole number, and a discriminator")
    if not isinstance(federation, dict | None):
        raise BadData(f"preset {name}: federation is a table, or {OFF!r}")
    if not _counts(epochs if steps is None else steps) or None not in (epochs, steps):
        raise BadData(f"preset {name}: say either epochs or steps, a whole number")
    if not isinstance(fid, float | None):
        raise BadData(f"preset {name}: fid is a number with a point, or {OFF!r}")
    return Preset(
        name=name,
        summary=summary,
        recipe=recipe,
        epochs=epochs if isinstance(epochs, int) else None,
        steps=steps if isinstance(steps, int) else None,
        federation=federation,
        wants_weights=_wanted(name, values["weights"]) if "weights" in values else None,
        fid=fid,
        provenance={key: entries[key].provenance for key in _shown(entries)},
    )


def resolve(name: str, read: Read, under: tuple[str, ...] = ()) -> dict[str, Entry]:
    """Every value by dotted key: those of the bases in their order, then the file's own over them.

    A table takes the place of a value that it is below, and the other way round. Raises `BadData` for a base that is
    unknown or that builds on the file itself.
    """
    if name in under:
        raise BadData(f"preset {under[0]} builds on itself: {' → '.join((*under, name))}")
    document = read(name)
    base = document.get("base", ())
    bases = [base] if isinstance(base, str) else base
    if not isinstance(bases, list | tuple) or not all(isinstance(one, str) for one in bases):
        raise BadData(f"preset {name}: base is the name of a file, or a list of names")
    found: dict[str, Entry] = {}
    for one in bases:
        found = _over(found, resolve(str(one), read, (*under, name)))
    own = {key: value for key, value in document.items() if key not in ("base", "summary")}
    return _over(found, dict(_entries(name, own, "")))


def nested(values: Mapping[str, Json]) -> dict[str, Json]:
    """`{"a.b": 1}` → `{"a": {"b": 1}}`."""
    tree: dict[str, Json] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        table = tree
        for step in path:
            below = table.setdefault(step, {})
            assert isinstance(below, dict), "resolve leaves no value above another"
            table = below
        table[last] = value
    return tree


def _shown(entries: Mapping[str, Entry]) -> list[str]:
    """The keys by `_ROOTS`; there single values before tables, and tables in the order of their first value."""
    tables = [key.rpartition(".")[0] for key in entries]

    def place(key: str) -> tuple[int, int, int]:
        return _ROOTS.index(key.partition(".")[0]), key.count("."), tables.index(key.rpartition(".")[0])

    return sorted(entries, key=place)


def _over(below: Mapping[str, Entry], above: Mapping[str, Entry]) -> dict[str, Entry]:
    kept = {
        key: entry
        for key, entry in below.items()
        if not any(key.startswith(other + ".") or other.startswith(key + ".") for other in above)
    }
    return {**kept, **above}


def _entries(name: str, table: Document, prefix: str) -> Iterator[tuple[str, Entry]]:
    """Every value of a document by dotted key. Raises `BadData` for one that does not say where it comes from."""
    for key, value in table.items():
        dotted = prefix + key
        if isinstance(value, Mapping) and "value" in value:
            yield dotted, _entry(name, dotted, value)
        elif isinstance(value, Mapping):
            yield from _entries(name, value, dotted + ".")
        else:
            raise BadData(f"preset {name}: {dotted} does not say where it comes from; {_FORM}")


_FORM: Final = f'write {{ value = ..., KIND = "why" }} with one of {", ".join(KINDS)}'


def _entry(name: str, dotted: str, table: Document) -> Entry:
    found = [kind for kind in KINDS if kind in table]
    why = table[found[0]] if len(found) == 1 else None
    if len(table) != 2 or not isinstance(why, str) or not why.strip():
        raise BadData(f"preset {name}: {dotted} does not say where it comes from; {_FORM}")
    value = table["value"]
    if isinstance(value, Mapping):
        raise BadData(f"preset {name}: {dotted} is a table; write its keys apart, each with where it comes from")
    return Entry(None if value == OFF else value, Provenance(found[0], why))


def _counts(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _wanted(name: str, weights: Json) -> WantedWeights:
    table = weights if isinstance(weights, Mapping) else {}
    file, prefix, model = (table.get(key) for key in ("file", "sha256_prefix", "model"))
    if not (isinstance(file, str) and isinstance(prefix, str) and isinstance(model, str)) or len(table) != 3:
        raise BadData(f"preset {name}: weights have a file, a sha256_prefix and a model, or are {OFF!r}")
    return WantedWeights(file, prefix, model)


def _installed() -> dict[str, Traversable]:
    return dict(_toml_files(files(__package__), ""))


def _toml_files(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _toml_files(item, f"{prefix}{item.name}/")
        elif item.name.endswith(_ENDING):
            yield prefix + item.name.removesuffix(_ENDING), item
