"""What the trainer of a task is told: what the offer and its experiment ask for, and what this site gives for it.

The settings are those in force at this moment; a reload counts from the next attempt on, which goes on with the same work
(`agent/assignment.py`, `same_work`). `agent/work.py` is the caller, once base and private tensors are in their places.
"""

from __future__ import annotations

from pathlib import Path

from agent.assignment import Assignment
from agent.config import AgentConfig
from agent.layout import Layout
from agent.offers import Offer
from histofed.base.experiment import Experiment
from histofed.base.seeds import training_seed


def assign(
    offer: Offer,
    experiment: Experiment,
    config: AgentConfig,
    *,
    base: Path,
    private: Path | None,
    private_round: int,
    output: Path,
) -> Assignment:
    """The assignment of the offer's task, whichever attempt it is."""
    task, asked = offer.task, experiment.file
    return Assignment(
        recipe=asked.recipe,
        config=dict(asked.recipe_config),
        base=base,
        base_sha256=offer.base,
        private=private,
        private_round=private_round,
        data=config.data.root,
        minimum_patients=config.minimum_patients,
        seed=training_seed(experiment.name, task.round.number, task.site),
        max_norm=asked.aggregation.max_norm,
        output=output,
        threads=config.trainer.threads,
        devices=config.trainer.devices,
        device=config.trainer.device,
        nice=config.trainer.nice,
        cache=config.data.cache_dir or Layout(config.state_dir).tile_cache,
        cache_bytes=config.data.cache_bytes,
        encoding=asked.aggregation.encoding,
        round=offer.rounds_committed + 1,
    )
