"""Ranges of the `gan` table, and the paper's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from histofed.base.errors import BadData
from histofed.base.ids import Json
from histofed.recipes.contract import ServerRule
from histofed.recipes.gan.recipe import GanRecipe
from histofed.training.rules import Augmentation, LeCam, Returns, Rules

RECIPE = GanRecipe()
SECTION: Mapping[str, Any] = {"image_size": 64, "steps": 10, "discriminator": {"name": "vit-mini"}}


def test_defaults_are_the_papers() -> None:
    config = RECIPE.parse(SECTION)
    assert config.classes == ("MSIH", "nonMSIH")
    assert (config.latent, config.generator_rate, config.betas) == (100, 2e-4, (0.5, 0.999))
    assert config.share == "generator+discriminator"
    assert not config.persist_moments


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 31},
        {"image_size": 66},
        {"image_size": 260},
        {"classes": ["MSIH"]},
        {"classes": ["MSIH", "msih"]},
        {"classes": ["MSIH", "../etc"]},
        {"classes": ["MSIH", "a\n"]},
        {"steps": 0},
        {"batch": 1},
        {"generator": "stylegan"},
        {"generator_rate": 0.0},
        {"betas": [0.5, 1.0]},
        {"ema_decay": 1.0},
        {"share": "discriminator"},
        {"discriminator": {"name": "hf-hub:someone/something"}},
        {"discriminator": {"name": "cnn", "weights": {"path": "x", "sha256": "short"}}},
        {"discriminator": {"name": "cnn", "wieghts": {}}},
        {"code": "import os"},
    ],
)
def test_what_is_out_of_range_is_refused(change: Mapping[str, Any]) -> None:
    with pytest.raises(BadData, match=next(iter(change))):
        RECIPE.parse({**SECTION, **change})


def test_demands_name_everything_a_site_consents_to() -> None:
    demands = RECIPE.demands(SECTION)
    assert demands.models == ("generator:paper-cnn", "discriminator:vit-mini")
    assert (demands.image_size, demands.classes, demands.steps) == (64, ("MSIH", "nonMSIH"), 10)


def test_only_the_generator_is_followed_by_the_server() -> None:
    rules = RECIPE.server_rules(
        {**SECTION, "ema_decay": 0.9}, ("discriminator.heads.validity.bias", "generator.linear.bias")
    )
    assert rules == (ServerRule("ema.linear.bias", "generator.linear.bias", 0.9),)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"objective": {"name": "lsgan"}}, r"objective\.name: Input should be 'acgan', 'cgan'"),
        ({"objective": {"nmae": "acgan"}}, r"objective\.nmae is not a key"),
        (
            {"objective": {"name": "wgan-gp"}, "discriminator": {"name": "cnn"}},
            'batch norm mixes the tiles.*"group" or "none"',
        ),
        ({"objective": {"name": "relativistic"}, "discriminator": {"name": "cnn"}}, "batch norm mixes the tiles.*R1"),
        ({"objective": {"name": "hinge", "r1": 0.1}, "discriminator": {"name": "cnn"}}, "batch norm mixes the tiles"),
        (
            {"objective": {"name": "wgan-gp"}, "discriminator": {"name": "cnn", "norm": "none", "batch_deviation": True}},
            "batch_deviation mixes the tiles",
        ),
        ({"objective": {"name": "wgan-gp", "gradient_penalty": 0}}, "nothing bounds a Wasserstein critic"),
        ({"objective": {"name": "wgan-gp", "critic_steps": 20}}, "would never|once in 20 steps, so never in 10"),
        ({"objective": {"name": "hinge", "gradient_penalty": 10}}, "gradient_penalty is WGAN-GP's; use r1"),
        ({"objective": {"name": "hinge", "real_target": 0.9}}, "'hinge' has no label targets"),
        ({"objective": {"name": "hinge", "penalty_every": 16}}, "no penalty to be lazy about"),
        ({"objective": {"name": "acgan", "real_target": 0.5}}, r"real_target: Input should be greater than 0\.5"),
        ({"objective": {"name": "relativistic"}, "lecam": {}}, "have no level of their own"),
        ({"discriminator": {"name": "vit-mini", "heads": "projection"}}, "'acgan' is defined by heads 'class'"),
        ({"discriminator": {"name": "vit-mini", "spectral_norm": True}}, "fails on transformers such as 'vit-mini'"),
        ({"discriminator": {"name": "swin_tiny_patch4_window7_224", "spectral_norm": True}}, "fails on transformers"),
        ({"discriminator": {"name": "vit-mini", "trunk": "frozen"}}, "a frozen trunk needs weights"),
        ({"discriminator": {"name": "vit-mini", "norm": "none"}}, "is for 'cnn', and discriminator.name is 'vit-mini'"),
        ({"discriminator": {"name": "vit-mini", "dropout": 0.5}}, "is an option of 'cnn'"),
        ({"discriminator": {"name": "cnn", "weights": {"path": "x", "sha256": "0" * 64}}}, "'cnn' starts from scratch"),
        (
            {"discriminator": {"name": "resnet18", "norm": "group", "weights": {"path": "x", "sha256": "0" * 64}}},
            "trained with the network's own norms",
        ),
        ({"batch": 6, "accumulate": 4}, "4 parts of at least two tiles each do not make a batch of 6"),
        ({"batch": 4, "accumulate": 4}, "4 parts of at least two tiles each"),
        ({"precision": "fp8"}, "precision: Input should be 'fp32', 'bf16' or 'fp16'"),
        ({"augment": {"translation": 0.9}}, r"translation: Input should be less than or equal to 0\.5"),
        ({"returns": {"most": 0}}, r"most: Input should be greater than or equal to 1"),
        ({"clip_gradient": 0}, "clip_gradient: Input should be greater than 0"),
    ],
)
def test_what_cannot_work_together_is_refused_in_words(change: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(BadData, match=sentence):
        RECIPE.parse({**SECTION, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"objective": {"name": "cgan", "class_weight": 5.0}},
        {"objective": {"name": "cgan", "class_ramp": 100}},
        {"objective": {"name": "hinge", "class_weight": 0.2}, "discriminator": {"name": "cnn", "heads": "projection"}},
    ],
)
def test_a_class_term_that_is_not_there_may_not_begin_and_goes_on(change: Mapping[str, Any]) -> None:
    """An older release took it; what is stored is parsed as long as its state lives."""
    config = RECIPE.parse({**SECTION, **change})
    with pytest.raises(
        BadData, match="class_weight and class_ramp are of a class term, and projection heads have none; rem"
    ):
        config.check_can_begin()
    assert RECIPE.server_rules({**SECTION, **change}, ("generator.linear.bias",))


def test_every_conflict_is_named_at_once() -> None:
    with pytest.raises(BadData, match=r"no label targets.*spectral_norm fails.*accumulate"):
        RECIPE.parse(
            {
                **SECTION,
                "objective": {"name": "hinge", "real_target": 0.9},
                "discriminator": {"name": "vit-mini", "spectral_norm": True},
                "accumulate": 3,
            }
        )


def test_without_options_the_rules_are_the_papers() -> None:
    assert RECIPE.parse(SECTION).rules() == Rules()


def test_tables_that_are_empty_take_the_tested_defaults() -> None:
    rules = RECIPE.parse({**SECTION, "augment": {}, "lecam": {}, "returns": {}}).rules()
    assert (rules.augmentation, rules.lecam, rules.returns) == (Augmentation(), LeCam(), Returns())


def test_an_objectives_numbers_are_its_own_unless_named() -> None:
    rules = RECIPE.parse({**SECTION, "steps": 10, "objective": {"name": "wgan-gp", "gradient_penalty": 3}}).rules()
    assert (rules.objective.critic_steps, rules.objective.gradient_penalty) == (5, 3.0)
    assert (rules.heads, rules.objective.fake_labels) == ("class", "real")
    rules = RECIPE.parse({**SECTION, "objective": {"name": "relativistic", "r2": 0}}).rules()
    assert (rules.objective.r1, rules.objective.r2) == (1.0, 0.0)
    config = RECIPE.parse({**SECTION, "objective": {"name": "cgan", "class_weight": 1.0}})
    assert config.rules().heads == "projection"
    config.check_can_begin()


def test_a_file_that_a_site_would_open_is_demanded() -> None:
    start: Mapping[str, Json] = {"name": "resnet18", "weights": {"path": "/w", "sha256": "ab" * 32}}
    assert RECIPE.demands({**SECTION, "discriminator": start}).models == (
        "generator:paper-cnn",
        "discriminator:resnet18",
        f"weights:{'ab' * 32}",
    )
