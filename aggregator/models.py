"""Makes global models: runs the arithmetic in child processes, stores the files by content, signs what they mean.

A model is named by the digest of its signed statement, which holds no time and nothing random: an aggregation that a
crash interrupted is repeated from the durable updates and makes the same model.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from aggregator.admission import weight_of
from aggregator.aggregate import AggregateJob, Kept, UpdateInput, open_tensors
from aggregator.first import check_names
from aggregator.jobs import CheckJob, InitialiseJob, InspectJob
from aggregator.pool import Workers
from aggregator.rounds import Round
from aggregator.rows import ModelRow
from aggregator.store import Store
from aggregator.strategies import flower_call
from histofed import statements
from histofed.base import durable
from histofed.base.clock import Clock
from histofed.base.errors import BadData, CannotWriteState
from histofed.base.experiment import Aggregation, Experiment
from histofed.base.failpoints import failpoint
from histofed.base.ids import Digest, ExperimentId, RoundKey, SiteId, sha256
from histofed.base.seeds import seed
from histofed.encodings.file import Encoded, Form
from histofed.encodings.step import step_form
from histofed.pki.credentials import Credentials
from histofed.pki.signing import sign
from histofed.recipes.registry import recipe
from histofed.statements import Contribution, File, ModelStatement, UpdateManifest, decode_model, decode_update
from histofed.transport.store import BlobStore, owner_of
from histofed.weights import Written

SHARED, SERVER, STRATEGY, STEP = "shared", "server", "strategy", "step"
"""A model's parts: what sites train from, what the aggregator keeps of the recipe's (the EMA generator), what a strategy of
Flower's keeps for its next round (FedAdam's moments), and the shared tensors once more, as what they add to those of the
model before: committed with the model or not at all."""


@dataclass(frozen=True)
class Made:
    """A model that is on disk and signed, but not committed yet."""

    model: ModelRow
    metrics: Mapping[str, float]
    """The sites' metrics, weighted as their updates, and the step's."""


class ModelForge:
    """Where models are made. `scratch` and `first` (weights that an operator brought) are on the blobs' file system."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: BlobStore,
        workers: Workers,
        current: Callable[[], Credentials],
        scratch: Path,
        clock: Clock,
        first: Path | None = None,
    ) -> None:
        """`current`: what a model is signed with."""
        self._first = first
        self._store = store
        self._blobs = blobs
        self._workers = workers
        self._current = current
        self._scratch = scratch
        self._clock = clock
        self._checked: dict[ExperimentId, RoundKey] = {}
        """The newest round of each experiment whose base was hashed in this life."""
        self._checking = asyncio.Lock()

    async def first(self, experiment: Experiment) -> ModelRow:
        """The model that every site starts from; the same for the same experiment. Raises `BadData`."""
        shared, server, *_ = self._outputs(f"{experiment.name}-0")
        given = self._given(experiment)
        made = await self._workers.run(
            InitialiseJob(
                recipe=experiment.file.recipe,
                config=experiment.file.recipe_config,
                seed=seed("initialise", experiment.name),
                out_shared=shared,
                out_server=server,
                given=given,
            )
        )
        _check_limit(experiment.file.aggregation, shared)
        parts = await self._keep({SHARED: (shared, made.shared), SERVER: (server, made.server)})
        return self._signed(experiment, round_number=0, base="", parts=parts, contributions=[])

    def check_given(self, experiment: Experiment) -> None:
        """What an operator brought for an experiment that is submitted can be its first weights. Raises `BadData`."""
        if (given := self._given(experiment)) is None:
            return
        with open_tensors(given, "the first weights") as file:
            names = file.names
        try:
            check_names(recipe(experiment.file.recipe), experiment.file.recipe_config, names)
        except BadData as error:
            raise BadData(f"{error}, after {given} was removed; nothing was submitted") from error

    def _given(self, experiment: Experiment) -> Path | None:
        given = None if self._first is None else self._first / f"{experiment.name}.safetensors"
        return given if given is not None and given.exists() else None

    def forget_first(self) -> None:
        """Remove what operators brought for experiments that have a first model, or have ended: nobody reads it again."""
        # where the disk refuses, it takes room until the next experiment begins or ends, or the next start
        with contextlib.suppress(CannotWriteState):
            brought = [] if self._first is None else durable.listing(self._first, "*.safetensors")
            ended = self._store.ended_experiments([path.stem for path in brought])
            for path in brought:
                if path.stem in ended or self._store.latest_model(ExperimentId(path.stem)) is not None:
                    durable.remove(path)

    async def inspect(self, experiment: Experiment, state: Round, site: SiteId) -> float:
        """The L2 norm of the site's (update - base).

        Raises `BadData` when the update may not enter, and `HistofedError` for a base that changed or cannot be read.
        """
        update = state.task(site).weights
        assert update is not None, "a received task has its weights"
        base = self._kept(self._store.part(state.base, SHARED))
        await self._check_base(state.key, base)
        rules = experiment.file.aggregation
        job = InspectJob(self._blobs.path(update), base.path, rules.max_norm, Form(rules.encoding, base.sha256))
        return (await self._workers.run(job)).norm

    async def _check_base(self, key: RoundKey, base: Kept) -> None:
        """Hash the base before the first look at an update of the round: no site that goes by steps ever downloads it.

        Once a round and not for each update: a model of 346 MB takes a quarter of a second. Raises `HistofedError`.
        """
        async with self._checking:
            if self._checked.get(key.experiment) != key:
                await self._workers.run(CheckJob((base,)))
                self._checked[key.experiment] = key

    async def next(self, experiment: Experiment, state: Round) -> Made:
        """The model after the round: what the strategy makes of the admitted updates.

        Raises `BadData`, and `HistofedError` for files of ours that cannot be read.
        """
        manifests = {site: self._manifest(state, site) for site in state.admitted}
        rule = experiment.file.aggregation.weights
        base = decode_model(self._store.model(state.base).statement.payload)
        shared, server, strategy, step = self._outputs(f"{experiment.name}-{state.key.number}")
        encoding, flower = experiment.file.aggregation.encoding, experiment.file.aggregation.flower
        # the mean of plain tensors takes nothing of the base but names, types and shapes
        built_on = {SERVER, STRATEGY} if encoding == "float32" and flower is None else {SHARED, SERVER, STRATEGY}
        base_shared = self._blobs.path(Digest(base.parts[SHARED].sha256))
        with open_tensors(base_shared, "the base model") as file:
            rules = recipe(experiment.file.recipe).server_rules(experiment.file.recipe_config, file.names)
        job = AggregateJob(
            base=base_shared,
            updates=tuple(
                UpdateInput(site, self._blobs.path(_weights_of(manifest)), weight_of(manifest, rule))
                for site, manifest in manifests.items()
            ),
            state=self._part_of(base, SERVER),
            rules=rules,
            round=self._store.rounds_committed(experiment.name) + 1,
            out_shared=shared,
            out_server=server if rules else None,
            flower=flower_call(
                experiment,
                state.key.number,
                {site: manifest.metrics for site, manifest in manifests.items()},
                self._part_of(base, STRATEGY),
                strategy,
            ),
            form=Form(encoding, base.parts[SHARED].sha256),
            step=step_form(encoding, base.parts[SHARED].sha256),
            out_step=step,
            kept=tuple(self._kept(file) for name, file in base.parts.items() if name in built_on),
        )
        made = await self._workers.run(job)
        written = {
            SHARED: (shared, made.shared),
            SERVER: (server, made.server),
            STRATEGY: (strategy, made.strategy),
            STEP: (step, made.step.file if made.step else None),
        }
        parts = await self._keep(written)
        failpoint("aggregator.aggregate_written")
        contributions = [
            Contribution(share.site, _weights_of(manifests[SiteId(share.site)]), share.weight) for share in made.shares
        ]
        model = self._signed(experiment, state.key.number, state.base, parts, contributions)
        metrics = _mean_metrics({share.site: share.weight for share in made.shares}, manifests)
        return Made(model, metrics if made.step is None else {**metrics, **_step_metrics(made.step)})

    def forget_updates(self, state: Round) -> None:
        """The round ended: its updates' bytes are not needed again. Files that are part of a model stay."""
        self._blobs.forget({_owner(state, site) for site in state.sampled}, self._store.is_part)

    def forget_strangers(self, open_rounds: Sequence[Round]) -> None:
        """After a start: what was sent for rounds that ended, when the last process could not clean up."""
        known = {_owner(state, site) for state in open_rounds for site in state.sampled}
        self._blobs.forget(self._blobs.owners() - known, self._store.is_part)

    def _kept(self, file: File) -> Kept:
        return Kept(self._blobs.path(file.sha256), Digest(file.sha256))

    def _part_of(self, model: ModelStatement, name: str) -> Path | None:
        return self._blobs.path(Digest(model.parts[name].sha256)) if name in model.parts else None

    def _outputs(self, name: str) -> tuple[Path, Path, Path, Path]:
        outputs = tuple(self._scratch / f"{name}-{part}.safetensors" for part in (SHARED, SERVER, STRATEGY, STEP))
        for path in outputs:
            durable.remove(path)
        return outputs[0], outputs[1], outputs[2], outputs[3]

    async def _keep(self, written: Mapping[str, tuple[Path, Written | None]]) -> dict[str, File]:
        """Move the files that were written to the blob store."""
        parts = {}
        for name, (path, file) in written.items():
            if file is not None:
                await asyncio.to_thread(self._blobs.adopt, path, file.sha256)
                parts[name] = File(**asdict(file))
        return parts

    def _signed(
        self, experiment: Experiment, round_number: int, base: str, parts: dict[str, File], contributions: list[Contribution]
    ) -> ModelRow:
        signer = self._current()
        statement = ModelStatement(
            federation=signer.federation,
            experiment=experiment.name,
            experiment_sha256=experiment.sha256,
            recipe=experiment.file.recipe,
            round=round_number,
            base=base,
            parts=parts,
            release=recipe(experiment.file.recipe).release,
            strategy=experiment.file.aggregation.strategy,
            contributions=contributions,
        )
        payload = statements.encode(statement)
        envelope = sign(statements.MODEL_TYPE, payload, signer)
        return ModelRow(sha256(payload), experiment.name, round_number, "candidate", envelope, self._clock.now())

    def _manifest(self, state: Round, site: SiteId) -> UpdateManifest:
        manifest = state.task(site).manifest
        assert manifest is not None, "an admitted task has its manifest"
        return decode_update(self._store.update(manifest).payload)


def _check_limit(rules: Aggregation, shared: Path) -> None:
    """An update of these tensors can be as small as the experiment wants it. Raises `BadData`, before any site has trained.

    Plain, it has the tensors' bytes and a header more; how small an encoded one becomes, nobody knows beforehand.
    """
    if rules.encoding != "float32":
        return
    with open_tensors(shared, "the first model") as file:
        least = sum(spec.end - spec.begin for spec in file.specs.values())
    if least > rules.max_update_bytes:
        raise BadData(
            f"an update of it has more than {least} bytes, the experiment's limit is {rules.max_update_bytes}: raise "
            "aggregation.max_update_bytes, and submit the file under another name"
        )


def _owner(state: Round, site: SiteId) -> str:
    return owner_of(str(state.task_key(site)))


def _weights_of(manifest: UpdateManifest) -> Digest:
    assert manifest.weights is not None, "an admitted update of kind train has weights"
    return Digest(manifest.weights.sha256)


def _step_metrics(step: Encoded) -> Mapping[str, float]:
    """What telling the new model as a step took away from the mean, and what it saves; for people."""
    return {"step_error_relative": step.loss.relative, "step_ratio": step.loss.ratio}


def _mean_metrics(shares: Mapping[str, float], manifests: Mapping[SiteId, UpdateManifest]) -> dict[str, float]:
    """The mean of each metric that every site reported."""
    tables = [manifest.metrics for manifest in manifests.values()]
    common = set.intersection(*(set(table) for table in tables)) if tables else set()
    return {
        name: sum(shares[site] * manifest.metrics[name] for site, manifest in manifests.items()) for name in sorted(common)
    }
