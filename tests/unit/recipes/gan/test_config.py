"""Ranges of the `gan` table, and the paper's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from histofed.base.errors import BadData
from histofed.recipes.contract import ServerRule
from histofed.recipes.gan.recipe import GanRecipe

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
