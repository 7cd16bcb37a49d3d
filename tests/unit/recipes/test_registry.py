"""Recipes by name, without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from histofed.base.errors import NotFound
from histofed.recipes import registry


def test_installed_recipes() -> None:
    assert registry.names() == ("exchange", "gan", "mean")
    for name in registry.names():
        assert registry.recipe(name).name == name


def test_an_unknown_recipe_is_refused_with_the_known() -> None:
    with pytest.raises(NotFound, match="'classifier' is not installed; installed are exchange, gan, mean"):
        registry.recipe("classifier")


def test_the_light_half_imports_no_heavy_library() -> None:
    code = (
        "import sys; from histofed.recipes.registry import recipe;"
        "recipe('gan').demands({'image_size': 64, 'steps': 5, 'discriminator': {'name': 'vit-mini'}});"
        "recipe('mean').workshop();"
        "print([name for name in ('torch', 'timm', 'PIL', 'grpc') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
