"""The presets that are shipped: complete, valid, and every value says where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from histofed.base.errors import BadData
from histofed.base.experiment import ExperimentFile
from histofed.recipes import presets
from histofed.recipes.gan.config import GanConfig
from histofed.recipes.gan.recipe import GanRecipe
from histofed.recipes.presets import Preset
from histofed.recipes.sections import parse_section

EVERY = [presets.load(name) for name in presets.names()]
TABLE_2 = {
    "paper/acgan-cnn": (30, 355.30),
    "paper/acgan-resnet18": (40, 261.86),
    "paper/acgan-resnet50": (40, 143.91),
    "paper/acgan-vit-b-16-28": (28, 201.22),
    "paper/acgan-vit-b-16-32": (32, 223.86),
    "paper/acgan-vit-b-16-36": (36, 177.00),
    "paper/acgan-vit-b-16": (40, 192.29),
    "paper/acgan-swin-t": (40, 285.71),
    "paper/cgan-cnn": (30, 333.97),
    "paper/cgan-vit-b-16": (30, 325.36),
    "paper/wgan-gp-cnn": (30, 281.47),
}
FEDERATED = {
    "paper/federated-4-vit-b-16": (4, 2, "iid-tile", None, 163.86),
    "paper/federated-10-vit-b-16": (10, 2, "iid-tile", None, 181.50),
    "paper/federated-4-swin-t": (4, 2, "iid-tile", None, 245.56),
    "paper/federated-10-swin-t": (10, 2, "iid-tile", None, 167.22),
    "paper/federated-6-majority-60": (6, 2, "class-majority", 0.6, None),
    "paper/federated-6-majority-70": (6, 2, "class-majority", 0.7, None),
    "paper/federated-6-majority-80": (6, 2, "class-majority", 0.8, None),
    "paper/federated-6-majority-90": (6, 2, "class-majority", 0.9, None),
}
WEIGHTS = ("/srv/weights/file.pth", "c867db91" + "0" * 56)


def leaves(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def federation_file(preset: Preset) -> ExperimentFile:
    assert preset.federation is not None
    own = {key: value for key, value in preset.federation.items() if key not in ("local_steps", "partition")}
    return ExperimentFile.model_validate({"name": "a", "recipe": "gan", **own})


def test_there_is_one_for_every_row_of_the_papers_tables() -> None:
    assert set(presets.names()) == {"default", *TABLE_2, *FEDERATED}


@pytest.mark.parametrize("name", TABLE_2)
def test_table_2(name: str) -> None:
    preset = presets.load(name)
    assert (preset.epochs, preset.fid) == TABLE_2[name]
    assert {preset.provenance[key].kind for key in ("epochs", "fid", "recipe.objective.name")} == {"stated"}
    assert preset.federation is None


@pytest.mark.parametrize("name", FEDERATED)
def test_tables_5_to_7(name: str) -> None:
    preset = presets.load(name)
    sites, sampled, method, ratio, fid = FEDERATED[name]
    assert preset.federation is not None
    partition = preset.federation["partition"]
    assert partition == {"sites": sites, "method": method} | ({"ratio": ratio} if ratio else {})
    file = federation_file(preset)
    assert sampled - 1 < file.sampling.fraction * sites <= sampled == file.sampling.minimum
    assert preset.fid == fid


@pytest.mark.parametrize("preset", EVERY, ids=lambda preset: preset.name)
def test_every_effective_value_says_where_it_comes_from(preset: Preset) -> None:
    config = parse_section(GanConfig, preset.recipe_table(100))
    effective = dict(leaves(config.model_dump(exclude={"steps": True}), "recipe."))
    effective.pop("recipe.discriminator.weights")  # `weights` says it
    stated = dict(leaves(preset.recipe, "recipe."))
    if preset.federation is not None:
        file = federation_file(preset).model_dump(exclude={"name": True, "recipe": True})
        effective |= dict(leaves(file, "federation."))
        stated |= dict(leaves(preset.federation, "federation."))

    assert (effective.keys() | stated.keys()) - preset.provenance.keys() == set()
    assert "weights" in preset.provenance or "weights.file" in preset.provenance
    # nor does a preset lean on a default of the models: what is not off is said
    assert {key for key, value in effective.items() if value is not None} - stated.keys() == set()


@pytest.mark.parametrize("preset", EVERY, ids=lambda preset: preset.name)
def test_what_it_wants_is_what_it_can_be_given(preset: Preset) -> None:
    pretrained = any(name in preset.name for name in ("vit", "swin", "resnet", "majority"))
    assert (preset.wants_weights is not None) == pretrained
    if preset.wants_weights is None:
        assert preset.departures() == ()
        with pytest.raises(BadData, match="starts from no weights file"):
            preset.recipe_table(10, WEIGHTS)
        return
    assert preset.wants_weights.sha256_prefix in preset.wants_weights.file
    assert "starts from random weights" in preset.departures()[0]
    table = preset.recipe_table(10, WEIGHTS)
    assert GanRecipe().demands(table).models[-1] == f"weights:{WEIGHTS[1]}"
    assert preset.recipe_table(10)["discriminator"] == preset.recipe["discriminator"]


def test_other_weights_are_a_departure() -> None:
    preset = presets.load("paper/acgan-vit-b-16")
    assert preset.departures(WEIGHTS) == ()
    assert "not from vit_b_16-c867db91.pth" in preset.departures(("other.pth", "ab" * 32))[0]


def test_steps_follow_from_epochs_and_tiles() -> None:
    assert presets.load("paper/acgan-vit-b-16").steps_for(19_557) == 24_447
    assert presets.load("default").steps_for(19_557) == presets.load("default").steps


def test_the_default_is_federated_with_the_discriminator_at_home() -> None:
    preset = presets.load("default")
    config = parse_section(GanConfig, preset.recipe_table(100))
    assert config.share == "generator"
    assert (config.image_size, config.generator, config.discriminator.norm) == (128, "deep", "none")
    assert preset.wants_weights is None
    assert {one.kind for one in preset.provenance.values()} == {"ours"}


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(BadData, match="did you mean 'paper/acgan-resnet50'"):
        presets.load("acgan-resnet50")
    with pytest.raises(BadData, match="there is no preset 'parts/acgan'"):
        presets.load("parts/acgan")
