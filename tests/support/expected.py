"""What an experiment must end with: the same arithmetic as in a federation, but one step after the other in this process.

No daemon, no wire, no disk that fails: the recipe, the clipping and the averaging alone. A federation that was killed,
cut or restarted has to make these very bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent import trainer
from agent.assignment import UPDATE_FILE, Assignment
from aggregator import worker
from aggregator.aggregate import AggregateJob, AggregateResult, UpdateInput
from aggregator.jobs import InitialiseJob, InitialiseResult
from aggregator.strategies import flower_call
from histofed.base.experiment import Experiment, parse_experiment
from histofed.base.hashing import sha256_file
from histofed.base.ids import Digest, SiteId
from histofed.base.seeds import seed, training_seed
from histofed.encodings.file import Form
from histofed.encodings.step import step_form
from histofed.recipes.contract import Progress
from histofed.recipes.registry import recipe

Parts = dict[str, Digest]
"""Part of a model → SHA-256."""


class _Quiet(trainer.Reporter):
    """Nobody listens to this training."""

    def __init__(self) -> None:
        super().__init__(-1)

    def progress(self, progress: Progress) -> None:
        """Nothing."""


def models(toml: str, sites: Sequence[str], scratch: Path) -> list[Parts]:
    """The parts of every model of an experiment in which all of `sites` take part in every round, the first model first.

    Sites count equally, as they do in the recipe `mean`.
    """
    rounds = parse_experiment(toml).file.rounds
    return models_of([(number, sites) for number in range(1, rounds + 1)], toml, scratch)


def models_of(committed: Sequence[tuple[int, Sequence[str]]], toml: str, scratch: Path) -> list[Parts]:
    """The parts of every model that the committed rounds make, each given by its number and the sites whose updates it
    admitted, the first model first. Rounds that were abandoned are left out: the next one starts where they did.
    """
    experiment = parse_experiment(toml)
    found, base = [_first(experiment, scratch)], 0
    for place, (number, sites) in enumerate(committed, 1):
        updates = tuple(_update(experiment, number, base, site, scratch) for site in sites)
        found.append(_average(experiment, number, place, base, updates, scratch))
        base = number
    return found


def _first(experiment: Experiment, scratch: Path) -> Parts:
    result = worker.perform(
        InitialiseJob(
            recipe=experiment.file.recipe,
            config=experiment.file.recipe_config,
            seed=seed("initialise", experiment.name),
            out_shared=scratch / "shared-0",
            out_server=scratch / "server-0",
        )
    )
    assert isinstance(result, InitialiseResult)
    return _parts(result)


def _update(experiment: Experiment, number: int, base: int, site: str, scratch: Path) -> UpdateInput:
    output = scratch / f"{site}-{number}"
    output.mkdir()
    start = scratch / f"shared-{base}"
    assignment = Assignment(
        recipe=experiment.file.recipe,
        config=dict(experiment.file.recipe_config) | {"delay_s": 0.0},
        base=start,
        base_sha256=sha256_file(start),
        private=None,
        private_round=0,
        data=None,
        minimum_patients=1,
        seed=training_seed(experiment.name, number, SiteId(site)),
        max_norm=experiment.file.aggregation.max_norm,
        output=output,
        threads=1,
        device="cpu",
        nice=0,
        encoding=experiment.file.aggregation.encoding,
    )
    trainer.run(assignment, _Quiet(), lambda: False)
    return UpdateInput(site, output / UPDATE_FILE, 1)


def _average(
    experiment: Experiment, number: int, place: int, base: int, updates: tuple[UpdateInput, ...], scratch: Path
) -> Parts:
    """`place`: among the committed rounds, which is what schedules go by."""
    rules = recipe(experiment.file.recipe).server_rules(experiment.file.recipe_config, ())
    state = scratch / f"strategy-{base}"
    before = state if state.exists() else None
    encoding, base_sha256 = experiment.file.aggregation.encoding, sha256_file(scratch / f"shared-{base}")
    result = worker.perform(
        AggregateJob(
            base=scratch / f"shared-{base}",
            updates=updates,
            state=scratch / f"server-{base}",
            rules=rules,
            round=place,
            out_shared=scratch / f"shared-{number}",
            out_server=scratch / f"server-{number}",
            form=Form(encoding, base_sha256),
            step=step_form(encoding, base_sha256),
            out_step=scratch / f"step-{number}",
            flower=flower_call(experiment, number, {}, before, scratch / f"strategy-{number}"),
        )
    )
    assert isinstance(result, AggregateResult)
    return _parts(result)


def _parts(result: InitialiseResult | AggregateResult) -> Parts:
    assert result.server is not None
    parts = {"shared": result.shared.sha256, "server": result.server.sha256}
    if isinstance(result, AggregateResult) and result.strategy is not None:
        parts["strategy"] = result.strategy.sha256
    if isinstance(result, AggregateResult) and result.step is not None:
        parts["step"] = result.step.file.sha256
    return parts
