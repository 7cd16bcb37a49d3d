"""The installed recipes by name; light: no torch, no network of any recipe is imported here."""

from __future__ import annotations

from histofed.base.errors import NotFound
from histofed.recipes.contract import Recipe
from histofed.recipes.exchange import ExchangeRecipe
from histofed.recipes.gan.recipe import GanRecipe
from histofed.recipes.mean import MeanRecipe

_INSTALLED: tuple[Recipe, ...] = (ExchangeRecipe(), GanRecipe(), MeanRecipe())


def names() -> tuple[str, ...]:
    """Every installed recipe, sorted."""
    return tuple(sorted(one.name for one in _INSTALLED))


def recipe(name: str) -> Recipe:
    """The recipe an experiment names. Raises `NotFound`."""
    for one in _INSTALLED:
        if one.name == name:
            return one
    raise NotFound(f"recipe {name!r} is not installed; installed are {', '.join(names())}")
