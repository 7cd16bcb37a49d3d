"""A preset: the values of an experiment, and for each of them where it comes from. Pure data and arithmetic; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeAlias, get_args

from histofed.base.errors import BadData
from histofed.base.ids import Json

Kind: TypeAlias = Literal["stated", "derived", "reconstructed", "ours"]
"""`stated` in the paper; `derived` from its numbers; `reconstructed`: the likeliest choice; `ours`: chosen freely."""
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


@dataclass(frozen=True)
class Provenance:
    """Where a value comes from."""

    kind: Kind
    why: str
    """One line; a table is the paper's."""


@dataclass(frozen=True)
class WantedWeights:
    """The published file that a discriminator's trunk starts from; where it lies is the site's affair."""

    file: str
    """Its published name, for example `vit_b_16-c867db91.pth`."""
    sha256_prefix: str
    """First digits of its SHA-256, which torchvision writes into the name."""
    model: str
    """What the file holds, in words."""


@dataclass(frozen=True)
class Preset:
    """One preset, complete."""

    name: str
    summary: str
    recipe: Mapping[str, Json]
    """The table of the recipe `gan`, without `steps` and without `discriminator.weights`: `recipe_table` adds both."""
    epochs: int | None
    """Passes over the tiles in central training; None where `steps` counts instead."""
    steps: int | None
    federation: Mapping[str, Json] | None
    """`rounds`, `local_steps`, the tables `sampling`, `round` and `aggregation` of an experiment file, and `partition`
    (`method`, `sites`, `ratio`): how tiles go to simulated sites. None where training is central."""
    wants_weights: WantedWeights | None
    fid: float | None
    """What the paper reports for this row; comparable with nothing that is measured here."""
    provenance: Mapping[str, Provenance]
    """By dotted key (`recipe.objective.name`, `epochs`, `federation.rounds`), for every value above and for each that is
    deliberately left out (`recipe.augment`)."""

    def value(self, key: str) -> Json:
        """The value of one of `provenance`'s keys; None where it is left out."""
        wanted = self.wants_weights
        found: Json = {
            "epochs": self.epochs,
            "steps": self.steps,
            "fid": self.fid,
            "weights": None if wanted is None else asdict(wanted),
            "recipe": self.recipe,
            "federation": self.federation,
        }
        for step in key.split("."):
            found = found.get(step) if isinstance(found, Mapping) else None
        return found

    def steps_for(self, tiles: int) -> int:
        """Steps of a central run over so many training tiles (the last batch of the last epoch is filled up)."""
        if self.steps is not None:
            return self.steps
        batch = self.recipe["batch"]
        assert self.epochs is not None and isinstance(batch, int), "files.py accepts nothing else"
        return math.ceil(self.epochs * tiles / batch)

    def recipe_table(self, steps: int, weights: tuple[str, str] | None = None) -> dict[str, Json]:
        """The table that `GanConfig` takes, with the steps of one task and perhaps a weights file (path, SHA-256).

        Raises `BadData` for weights where the preset's discriminator starts from none. Without weights the trunk starts at
        random; `departures` says what that means.
        """
        table: dict[str, Json] = {**self.recipe, "steps": steps}
        if weights is not None:
            if self.wants_weights is None:
                raise BadData(f"preset {self.name} starts from no weights file; leave the weights out")
            discriminator = table["discriminator"]
            assert isinstance(discriminator, Mapping)
            path, sha256 = weights
            table["discriminator"] = {**discriminator, "weights": {"path": path, "sha256": sha256}}
        return table

    def departures(self, weights: tuple[str, str] | None = None) -> tuple[str, ...]:
        """In which way a run that starts from these weights (path, SHA-256) is not this preset's; a sentence each."""
        wanted = self.wants_weights
        if wanted is None:
            return ()
        if weights is None:
            return (f"the discriminator starts from random weights, not from {wanted.file} ({wanted.model})",)
        if not weights[1].startswith(wanted.sha256_prefix):
            return (
                f"the discriminator starts from a file with SHA-256 {weights[1][:12]}..., "
                f"not from {wanted.file} ({wanted.model})",
            )
        return ()
