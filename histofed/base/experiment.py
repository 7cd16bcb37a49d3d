"""An experiment: data, never code. The operator's TOML file, checked by this one model at the aggregator and at each site.

The `[config]` table belongs to the recipe and is checked by it (`histofed/recipes/contract.py`), and what `[aggregation]`
says of a strategy of Flower's is checked by the aggregator (`aggregator/strategies.py`); here both are only carried.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from histofed.base.encoding import Encoding
from histofed.base.errors import BadData
from histofed.base.ids import Digest, ExperimentId, experiment_id, sha256, site_id

SIZE_LIMIT = 64 * 1024
"""Bytes of an experiment file; a task offer carries the whole file."""
FLOWER: Final = "flower:"
"""Begins the name of a strategy of Flower's."""


class _Table(BaseModel):
    """TOML has types: a text that looks like a number is a mistake; a whole number where a fraction may stand is not."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Sampling(_Table):
    """Which sites take part in a round (McMahan et al. 2017, "client fraction C")."""

    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the eligible sites; rounded up."""
    minimum: Annotated[int, Field(ge=1)] = 2
    """A round waits until this many sites are eligible, and samples at least this many."""
    oversample: Annotated[float, Field(ge=1, le=10)] = 1.0
    """Ask this many times as many sites, and close the round when as many as without it are admitted: stragglers are not
    waited for (Bonawitz et al. 2019, section 2.2)."""
    sites: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Only these sites; every enrolled site where the key is missing."""

    @model_validator(mode="after")
    def _names(self) -> Sampling:
        for name in self.sites:
            site_id(name)
        return self


class RoundRules(_Table):
    """When a round closes."""

    quorum: Annotated[int, Field(ge=1)] = 1
    """Admitted updates without which the round is abandoned at its deadline."""
    deadline_s: Annotated[int, Field(ge=5, le=7 * 86400)] = 6 * 3600
    """Seconds from the opening to the deadline, by the wall clock; survives a restart."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    """How often a task that failed at a site is offered again."""
    abandoned_limit: Annotated[int, Field(ge=1, le=100)] = 3
    """After this many abandoned rounds in a row the experiment is paused until an operator resumes it."""


class Aggregation(_Table):
    """How updates become the next model."""

    strategy: str = "fedavg"
    """`fedavg`, or `flower:NAME` for one of Flower's, for example `flower:FedAdam`."""
    options: Mapping[str, Any] = Field(default_factory=dict)
    """The numbers of a strategy of Flower's, for example `{ eta = 0.01 }`."""
    weights: Literal["tiles", "patients", "uniform"] = "tiles"
    """What a site's update counts by."""
    max_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e4
    """Largest L2 norm of (update - base): a site clips to it, the aggregator refuses above it."""
    encoding: Encoding = "float32"
    """How a site writes its update's tensors for the way (`histofed/encodings`)."""
    max_update_bytes: Annotated[int, Field(ge=1024, le=1 << 34)] = 1 << 30
    """Larger updates are refused before their first byte."""

    @model_validator(mode="after")
    def _strategy(self) -> Aggregation:
        if self.flower is None and self.strategy != "fedavg":
            raise ValueError(f"{self.strategy[:60]!r} is no strategy; there are 'fedavg' and 'flower:NAME' (flower:FedAdam)")
        if self.flower is None and self.options:
            raise ValueError("fedavg has no options; only the strategies 'flower:NAME' do")
        return self

    @property
    def flower(self) -> str | None:
        """The name that Flower gives the strategy; None for our own."""
        return self.strategy.removeprefix(FLOWER) if self.strategy.startswith(FLOWER) else None


class ExperimentFile(_Table):
    """The whole file. Unknown keys are errors."""

    name: str
    recipe: str
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    """Rounds to commit."""
    sampling: Sampling = Sampling()
    round: RoundRules = RoundRules()
    aggregation: Aggregation = Aggregation()
    recipe_config: Mapping[str, Any] = Field(default_factory=dict, alias="config")
    """The recipe's own table, `[config]`."""

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentFile:
        experiment_id(self.name)
        if self.round.quorum > self.sampling.minimum:
            raise ValueError(
                f"round.quorum = {self.round.quorum} is above sampling.minimum = {self.sampling.minimum}: "
                "a round could never reach it"
            )
        return self


@dataclass(frozen=True)
class Experiment:
    """A checked experiment with the exact text it came from; its digest is what consent and audit refer to."""

    name: ExperimentId
    toml: str
    sha256: Digest
    file: ExperimentFile


def parse_experiment(toml: str) -> Experiment:
    """The experiment in a TOML text. Raises `BadData` with one sentence per mistake; the recipe checks `[config]`."""
    if len(toml.encode()) > SIZE_LIMIT:
        raise BadData(f"the experiment file is larger than {SIZE_LIMIT} bytes")
    try:
        document = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as error:
        raise BadData(f"the experiment file is not TOML: {error}") from error
    except RecursionError as error:
        raise BadData("the experiment file is nested too deeply") from error
    except ValueError as error:
        raise BadData("the experiment file holds a number that is too long") from error
    try:
        file = ExperimentFile.model_validate(document)
    except ValidationError as error:
        raise BadData("the experiment file cannot be used: " + "; ".join(sentences(error))) from error
    return Experiment(ExperimentId(file.name), toml, sha256(toml.encode()), file)


def check_can_begin(sampling: Sampling) -> None:
    """A new experiment's first round could be drawn. Raises `BadData`.

    No part of `parse_experiment`: what an older release has stored is parsed for as long as its state lives.
    """
    sites = sampling.sites
    if not sites and "sites" in sampling.model_fields_set:
        raise BadData("sampling.sites = [] names nobody: name the sites, or leave the key out to ask every enrolled one")
    if twice := sorted({site for site in sites if sites.count(site) > 1}):
        raise BadData(f"sampling.sites names {', '.join(twice)} more than once: name each site once")
    if sites and sampling.minimum > len(sites):
        raise BadData(
            f"sampling.minimum = {sampling.minimum} is above the number of sites in sampling.sites, {len(sites)}: no round "
            "could ever begin, so lower the one or name more in the other"
        )


def sentences(error: ValidationError) -> tuple[str, ...]:
    """pydantic's findings, one clause each: `sampling.fraction: Input should be less than or equal to 1 (it is 2)`."""
    found = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"]) or "file"
        if item["type"] == "extra_forbidden":
            *table, key = item["loc"]
            near = difflib.get_close_matches(str(key), _keys(table), 1)
            found.append(f"{where}: no such key" + (f", did you mean {near[0]}?" if near else ""))
        elif item["type"] == "missing":
            found.append(f"{where}: missing")
        else:
            value = "" if isinstance(item["input"], Mapping) else f" (it is {item['input']!r})"
            found.append(f"{where}: {item['msg'].removeprefix('Value error, ')}{value}")
    return tuple(found)


def _keys(table: Sequence[int | str]) -> list[str]:
    """What may stand in a table of an experiment file."""
    model: type[BaseModel] = ExperimentFile
    for part in table:
        inner = model.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]
