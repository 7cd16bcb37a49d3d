"""Whether first weights that were drawn elsewhere are an experiment's: a wrong file would cost every site three rounds.

Without torch only the names tell, and they tell the likeliest mistake, a model's part that sites do not train from. Where
the networks can be built, each name, type and shape is compared. Asked at the submission (`aggregator/models.py`), which is
then refused, and by the child that makes the first model (`aggregator/worker.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from histofed.base import durable
from histofed.base.errors import BadData
from histofed.base.ids import Json
from histofed.recipes.contract import Recipe
from histofed.weights import TensorFile, check_same_meaning


def check_names(recipe: Recipe, config: Mapping[str, Json], names: tuple[str, ...]) -> None:
    """As far as names tell, these are the tensors that sites share. Raises `BadData`."""
    beginnings = recipe.shared_names(config)
    for name in names:
        if not name.startswith(beginnings):
            raise _stranger(f"tensor {name[:80]!r} is none that its sites share")
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in names):
            raise _stranger(f"there is no tensor {beginning!r}")


def check_tensors(recipe: Recipe, config: Mapping[str, Json], given: Path, seed: int, scratch: Path) -> None:
    """They have names, types and shapes of those that would be drawn; names alone where none can. Raises `BadData`.

    `scratch`: a file that is written and removed.
    """
    with TensorFile(given) as tensors:
        check_names(recipe, config, tensors.names)
        try:
            if _drawn(recipe, config, seed, scratch):
                with TensorFile(scratch) as own:
                    _check_alike(tensors, own)
        finally:
            durable.remove(scratch)


def _drawn(recipe: Recipe, config: Mapping[str, Json], seed: int, target: Path) -> bool:
    """Whether they could be drawn here; without torch, or without the file of a frozen trunk, that is no fault."""
    try:
        recipe.workshop().initialise(config, seed, target)
    except (ImportError, BadData):
        return False
    return True


def _check_alike(given: TensorFile, own: TensorFile) -> None:
    try:
        check_same_meaning(given, own)
    except BadData as error:
        raise _stranger(str(error)) from error


def _stranger(why: str) -> BadData:
    return BadData(
        f"the first weights that were given are not this experiment's ({why}): give what `histofed experiments draw` makes "
        "of its file"
    )
