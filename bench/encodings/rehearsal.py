"""A federation without daemons and wire: the agent's trainer and the aggregator's worker in turns, in this process.

What comes out is what a federation's rounds would leave: bases, updates in the experiment's encoding, models, EMA.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent import trainer
from agent.assignment import PRIVATE_FILE, UPDATE_FILE, Assignment, Result
from aggregator import worker
from aggregator.aggregate import AggregateJob, UpdateInput
from aggregator.jobs import InitialiseJob
from histofed.base.encoding import Encoding
from histofed.base.hashing import sha256_file
from histofed.base.ids import ExperimentId, Json, SiteId
from histofed.base.seeds import seed, training_seed
from histofed.encodings.file import Form
from histofed.encodings.step import step_form
from histofed.recipes.contract import Progress
from histofed.recipes.gan.settings import Changes, from_preset
from histofed.recipes.presets import load
from histofed.recipes.registry import recipe
from histofed.tiles.draw import draw_tiles
from histofed.tiles.split import split_by_patient
from histofed.weights import read_header

CLASSES: Final = ("MSIH", "nonMSIH")
SITES: Final = ("north", "south")
MAX_NORM: Final = 1e3
"""The preset's."""


@dataclass(frozen=True)
class Plan:
    """How much is trained."""

    size: int
    """Edge of the tiles, pixels."""
    rounds: int
    steps: int
    """Of one task."""
    batch: int


@dataclass(frozen=True)
class Round:
    """The files of one committed round."""

    number: int
    base: Path
    updates: Mapping[str, Path]
    """By site."""
    model: Path
    server: Path
    """The EMA generator."""
    step: Path | None
    """The model as a step from the base, where the encoding has one."""


class _Quiet(trainer.Reporter):
    def __init__(self) -> None:
        super().__init__(-1)

    def progress(self, progress: Progress) -> None:
        """Nobody watches."""


def sites_of(data: Path | None, folder: Path) -> dict[str, Path]:
    """Each site's tiles: those of `data` shared out by patient, or drawn ones."""
    if data is None:
        data = folder / "drawn"
        draw_tiles(data, patients_per_class=8, tiles_per_patient=10, size=96)
    split_by_patient(data, CLASSES, SITES, 1, folder / "sites")
    return {site: folder / "sites" / site for site in SITES}


def config_of(plan: Plan) -> dict[str, Json]:
    """The preset `default`, smaller."""
    values: dict[str, Json] = {"image_size": plan.size, "batch": plan.batch, "precision": "fp32"}
    settings = from_preset(load("default"), Changes(steps=plan.steps, values=values, random_start=True))
    return dict(settings.draft().model_dump(mode="json"))


def rehearse(plan: Plan, sites: Mapping[str, Path], encoding: Encoding, name: str, folder: Path) -> Iterator[Round]:
    """Every round of an experiment called `name` (its seeds come from that), as it is committed. Sites count equally."""
    config, gan = config_of(plan), recipe("gan")
    folder.mkdir(parents=True)
    first = InitialiseJob("gan", config, seed("initialise", name), folder / "model-0", folder / "server-0")
    worker.perform(first)
    rules = gan.server_rules(config, tuple(spec.name for spec in read_header(folder / "model-0")))
    private: dict[str, Path] = {}
    for number in range(1, plan.rounds + 1):
        base = folder / f"model-{number - 1}"
        form = Form(encoding, sha256_file(base))
        updates = {}
        for site, data in sites.items():
            output = folder / f"{site}-{number}"
            output.mkdir()
            _train(
                config, form, base, data, training_seed(ExperimentId(name), number, SiteId(site)), private.get(site), output
            )
            private[site], updates[site] = output / PRIVATE_FILE, output / UPDATE_FILE
        model, server = folder / f"model-{number}", folder / f"server-{number}"
        inputs = tuple(UpdateInput(site, path, 1) for site, path in updates.items())
        before, step = folder / f"server-{number - 1}", step_form(encoding, form.base)
        out_step = folder / f"step-{number}"
        worker.perform(
            AggregateJob(base, inputs, before, rules, number, model, server, form=form, step=step, out_step=out_step)
        )
        yield Round(number, base, updates, model, server, out_step if step else None)


def _train(
    config: dict[str, Json], form: Form, base: Path, data: Path, task_seed: int, private: Path | None, output: Path
) -> Result:
    assignment = Assignment(
        recipe="gan",
        config=config,
        base=base,
        base_sha256=form.base,
        private=private,
        private_round=0,
        data=data,
        minimum_patients=1,
        seed=task_seed,
        max_norm=MAX_NORM,
        output=output,
        threads=1,
        device="cpu",
        nice=0,
        encoding=form.encoding,
    )
    return trainer.run(assignment, _Quiet(), lambda: False)
