"""Presets as experiment files: what the aggregator and a site would say to them."""

from __future__ import annotations

import pytest

from histofed.base.errors import BadData
from histofed.base.experiment import Aggregation, RoundRules, parse_experiment
from histofed.recipes import presets
from histofed.recipes.gan.recipe import GanRecipe
from histofed.recipes.presets import Preset
from histofed.recipes.presets.experiment_file import experiment_toml

EVERY = [presets.load(name) for name in presets.names()]


@pytest.mark.parametrize("preset", [one for one in EVERY if one.federation], ids=lambda preset: preset.name)
def test_the_file_is_the_preset(preset: Preset) -> None:
    file = parse_experiment(experiment_toml(preset)).file
    assert preset.federation is not None
    steps = preset.federation["local_steps"]
    assert isinstance(steps, int)

    assert file.name == preset.name.replace("/", "-")
    assert GanRecipe().parse(file.recipe_config) == GanRecipe().parse(preset.recipe_table(steps))
    assert file.rounds == preset.federation["rounds"]
    assert file.aggregation == Aggregation.model_validate(preset.federation["aggregation"])
    assert file.round == RoundRules.model_validate(preset.federation["round"])


def test_each_value_says_where_it_comes_from() -> None:
    text = experiment_toml(presets.load("paper/federated-6-majority-90"))
    assert "rounds = 40  # reconstructed: " in text
    assert "# no augment: reconstructed: " in text
    assert "--by class-majority --sites 6 --ratio 0.9" in text


def test_a_weights_file_is_left_to_be_filled_in() -> None:
    text = experiment_toml(presets.load("paper/federated-4-vit-b-16"))
    line = '# weights = { path = "/srv/weights/vit_b_16-c867db91.pth", sha256 = "c867db91..." }'
    filled = text.replace(line, line.removeprefix("# ").replace("c867db91...", "c867db91" + "0" * 56))
    assert "not the paper's experiment" in text
    assert filled != text
    assert GanRecipe().demands(parse_experiment(filled).file.recipe_config).models[-1].startswith("weights:c867db91")
    assert "weights/" not in experiment_toml(presets.load("default"))


def test_central_training_has_no_experiment_file() -> None:
    with pytest.raises(BadData, match="trained at one place"):
        experiment_toml(presets.load("paper/acgan-vit-b-16"))
