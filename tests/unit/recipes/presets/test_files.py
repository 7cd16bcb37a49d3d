"""The form of a preset file, and files that build on others."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping

import pytest

from histofed.base.errors import BadData
from histofed.base.ids import Json
from histofed.recipes.presets.files import Read, build, resolve
from histofed.recipes.presets.preset import Provenance

ROOT = """
summary = "a root"
epochs = { value = 3, stated = "Table 2" }
[recipe]
batch = { value = 32, reconstructed = "32 to 64" }
augment = { value = "off", reconstructed = "not mentioned" }
discriminator.name = { value = "cnn", stated = "Table 2" }
"""


def library(**texts: str) -> Read:
    documents = {name: tomllib.loads(text) for name, text in texts.items()}

    def read(name: str) -> Mapping[str, Json]:
        if name not in documents:
            raise BadData(f"no {name}")
        return documents[name]

    return read


def test_a_file_says_only_what_differs() -> None:
    child = 'summary = "a child"\nbase = "root"\nrecipe.batch = { value = 8, ours = "smaller" }'
    preset = build("child", library(root=ROOT, child=child))

    assert preset.summary == "a child"
    assert preset.recipe == {"batch": 8, "discriminator": {"name": "cnn"}}
    assert preset.provenance["recipe.batch"] == Provenance("ours", "smaller")
    assert preset.provenance["epochs"] == Provenance("stated", "Table 2")
    assert preset.provenance["recipe.augment"].kind == "reconstructed"
    assert preset.value("recipe.augment") is None


def test_later_bases_go_over_earlier_ones_and_the_file_over_all() -> None:
    one = 'x = { value = 1, ours = "." }\ny = { value = 1, ours = "." }\nz = { value = 1, ours = "." }'
    two = 'y = { value = 2, ours = "." }\nz = { value = 2, ours = "." }'
    three = 'base = ["one", "two"]\nz = { value = 3, ours = "." }'
    found = resolve("three", library(one=one, two=two, three=three))
    assert {key: entry.value for key, entry in found.items()} == {"x": 1, "y": 2, "z": 3}


def test_a_table_takes_the_place_of_a_value_and_a_value_that_of_a_table() -> None:
    table = 'summary = "t"\nbase = "root"\n[recipe.augment]\nflips = { value = true, ours = "." }'
    off = 'summary = "o"\nbase = "table"\nrecipe.augment = { value = "off", ours = "." }'
    read = library(root=ROOT, table=table, off=off)
    assert build("table", read).recipe["augment"] == {"flips": True}
    assert "recipe.augment" not in build("table", read).provenance
    assert "augment" not in build("off", read).recipe
    assert "recipe.augment.flips" not in build("off", read).provenance


def test_a_base_that_is_circular_or_unknown_is_refused() -> None:
    circle = library(a='base = "b"', b='base = ["c"]', c='base = "a"', d='base = "nowhere"', e="base = 3")
    with pytest.raises(BadData, match="preset a builds on itself: a → b → c → a"):
        resolve("a", circle)
    with pytest.raises(BadData, match="no nowhere"):
        resolve("d", circle)
    with pytest.raises(BadData, match="base is the name of a file"):
        resolve("e", circle)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("recipe.batch = 32", "recipe.batch does not say where it comes from"),
        ("recipe.batch = { value = 32 }", "recipe.batch does not say where it comes from"),
        ('recipe.batch = { value = 32, ours = "" }', "recipe.batch does not say where it comes from"),
        ('recipe.batch = { value = 32, guessed = "x" }', "with one of stated, derived, reconstructed, ours"),
        ('recipe.batch = { value = 32, ours = "x", stated = "y" }', "recipe.batch does not say"),
        ('recipe.batch = { stated = "y" }', "recipe.batch.stated does not say"),
        ('recipe.lecam = { value = { weight = 1 }, ours = "x" }', "recipe.lecam is a table"),
        ('recipe.batch = { value = "32", ours = "x" }', "at least a batch, a whole number"),
        ('steps = { value = 5, ours = "x" }', "either epochs or steps"),
        ('epochs = { value = true, ours = "x" }', "either epochs or steps"),
        ('epochs = { value = "off", ours = "x" }', "either epochs or steps"),
        ('fid = { value = 177, stated = "x" }', "fid is a number with a point"),
        ('federation = { value = 4, stated = "x" }', "federation is a table"),
        ('weights = { value = "a.pth", stated = "x" }', "weights have a file"),
        ('weights.file = { value = "a.pth", stated = "x" }', "weights have a file"),
        ('recipie.batch = { value = 1, ours = "x" }', "'recipie' is nothing that a preset has"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(line: str, sentence: str) -> None:
    with pytest.raises(BadData, match=sentence):
        build("child", library(root=ROOT, child=f'summary = "c"\nbase = "root"\n{line}'))


def test_a_preset_has_a_summary_of_its_own() -> None:
    with pytest.raises(BadData, match="say what it is in a line"):
        build("child", library(root=ROOT, child='base = "root"'))
