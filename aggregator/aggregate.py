"""Federated averaging as one pure function: a round's admitted updates become the next model.

`aggregate` walks the updates' safetensors tensor by tensor and piece by piece, so that its memory does not depend on the
number of sites nor on the size of the model: two float64 buffers that stay in a core's L2 cache, and of each site the piece
in hand, read or decoded (`TensorFile.pieces`, `histofed/encodings`): 0.1 to 0.3 MB.

Invariants. The result depends on the set of updates alone: they are sorted by site, each element is summed in float64 in
that order by elementwise IEEE operations, never by BLAS, so neither the order of arrival nor threads nor the processor
change a bit. One update, or equal ones, give exactly their own bytes. Types are kept. Nothing is left behind where it fails.

It runs in a child process (`aggregator/worker.py`); admission has checked the updates, and a fault that it should have
caught is refused here with the site and the tensor named.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TypeVar

import numpy as np

from aggregator.mean import WeightedMean
from histofed.base.errors import BadData, HistofedError
from histofed.base.hashing import sha256_file
from histofed.base.ids import Digest
from histofed.encodings.file import PLAIN, Encoded, Form, open_encoded
from histofed.encodings.step import writing_step
from histofed.recipes.contract import ServerRule
from histofed.weights import Array, TensorFile, Tensors, Written, check_same_meaning, save_stream

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class UpdateInput:
    """One site's admitted update. `weight` is what it counts by: tiles, patients or 1; above zero."""

    site: str
    path: Path
    weight: int


@dataclass(frozen=True)
class Kept:
    """A file of ours that lay on the disk since the round before, and what its bytes were."""

    path: Path
    sha256: Digest


@dataclass(frozen=True)
class FlowerCall:
    """One of Flower's strategies instead of the mean (`aggregator/flower.py`); checked by `aggregator/strategies.py`."""

    strategy: str
    """The class, for example `FedAdam`."""
    options: Mapping[str, float | int | str]
    """What its constructor is given."""
    seed: int
    """63 bits from (experiment, round), for the global generators that a strategy may draw from."""
    metrics: Mapping[str, Mapping[str, float]]
    """What each site reported of its training."""
    state: Path | None
    """What the strategy kept after the round before; None where there is none yet."""
    out_state: Path
    """Written where the strategy keeps anything."""


@dataclass(frozen=True)
class AggregateJob:
    """Everything the next model depends on. Paths are the aggregator's own."""

    base: Path
    """Shared tensors that the round started from."""
    updates: tuple[UpdateInput, ...]
    """In any order; one per site."""
    state: Path | None
    """The server tensors before; None where there are none yet."""
    rules: tuple[ServerRule, ...]
    round: int
    """Of those that were committed, this one's place, from 1: rounds that were abandoned moved nothing."""
    out_shared: Path
    out_server: Path | None
    """Needed where there are rules."""
    flower: FlowerCall | None = None
    """None for the mean."""
    form: Form = PLAIN
    """How the updates are written; they are decoded as they are read."""
    step: Form | None = None
    """How the new model is told as a step from the base (`histofed/encodings/step.py`); None where it is not."""
    out_step: Path | None = None
    """Needed where there is a step."""
    kept: tuple[Kept, ...] = ()
    """Files that are hashed before they are built on: a changed byte in what no site downloads would stay for ever."""


@dataclass(frozen=True)
class Share:
    """One site's part of the average; all parts sum to 1."""

    site: str
    weight: float


@dataclass(frozen=True)
class AggregateResult:
    """The files that were written, durable, and each site's share, sorted by site."""

    shared: Written
    server: Written | None
    shares: tuple[Share, ...]
    strategy: Written | None = None
    """What a strategy of Flower's keeps for its next round."""
    step: Encoded | None = None
    """The new model as a step from the base."""


def check_kept(files: Sequence[Kept]) -> None:
    """Raises `HistofedError` for one whose bytes are not what they were: no site's fault, and no round can mend it."""
    for file in files:
        try:
            found = sha256_file(file.path)
        except OSError as error:
            raise HistofedError(f"the model's file {file.path.name[:12]}… cannot be read: {error.strerror}") from error
        if found != file.sha256:
            raise HistofedError(
                f"the model's file {file.path.name[:12]}… has changed on the disk: repair the disk and restore a backup"
            )


def aggregate(job: AggregateJob) -> AggregateResult:
    """FedAvg (McMahan et al. 2017, algorithm 1) over full weights, then the server tensors by their rules.

    Raises `BadData` naming the site and the tensor that cannot be averaged, `CannotWriteState`, and another
    `HistofedError` for files that cannot be read here.
    """
    updates = tuple(sorted(job.updates, key=lambda update: update.site))
    shares = shares_of(updates)
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(open_tensors(job.base, "the base model"))
        files = [stack.enter_context(open_update(update, base, job.form)) for update in updates]
        shared, step = write_model(job, base, averages(files, shares))
    server = follow(job.out_shared, job.state, job.rules, job.round, job.out_server) if job.rules else None
    return AggregateResult(shared, server, shares, step=step)


def write_model(job: AggregateJob, base: TensorFile, data: Iterator[Array]) -> tuple[Written, Encoded | None]:
    """The new shared tensors, whose pieces are `data`, and the step to them where the job wants one.

    Raises `BadData` and `CannotWriteState`.
    """
    if job.step is None or job.out_step is None:
        return save_stream(job.out_shared, _headers(base), data), None
    with writing_step(job.out_step, base, job.step) as step:
        shared = save_stream(job.out_shared, _headers(base), step.through(data))
        encoded = step.finish()
    return shared, encoded


def shares_of(updates: Sequence[UpdateInput]) -> tuple[Share, ...]:
    """weight / sum of weights, in float64, in the order given. Raises `BadData`."""
    if not updates:
        raise BadData("there is no update to average")
    sites = [update.site for update in updates]
    for site in sites:
        if sites.count(site) > 1:
            raise BadData(f"site {site} has more than one update in the round")
    for update in updates:
        if update.weight <= 0:
            raise BadData(f"the update of site {update.site} counts by {update.weight}; it must be above zero")
    total = sum(update.weight for update in updates)
    return tuple(Share(update.site, update.weight / total) for update in updates)


def follow(shared: Path, state: Path | None, rules: Sequence[ServerRule], round_number: int, target: Path | None) -> Written:
    """Write the server tensors that follow the model in `shared`, one per rule; a missing one starts as a copy.

    The decay of the r-th committed round is min(decay, (r - 1) / (r + 4)), `ServerRule`. Raises `BadData` and
    `CannotWriteState`.
    """
    if target is None:
        raise BadData("the recipe keeps server tensors, but there is no file to write them to")
    ordered = sorted(rules, key=lambda rule: rule.target)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(open_tensors(shared, "the new model"))
        before = stack.enter_context(open_tensors(state, "the server tensors")) if state else None
        _check_rules(ordered, model, before)
        headers = [(rule.target, *model.specs[rule.source].meaning[1:]) for rule in ordered]
        return save_stream(target, headers, _followers(ordered, model, before, round_number))


def averages(files: Sequence[Tensors], shares: Sequence[Share]) -> Iterator[Array]:
    """Every tensor's mean in pieces, sorted by name. The files hold the same tensors. Raises `BadData`."""
    mean = WeightedMean([share.weight for share in shares])
    for name in files[0].specs:
        for parts in zip(*map(_pieces_of, files, repeat(name), shares), strict=True):
            found = mean.of(parts)
            if found is None:
                site = next(share.site for share, part in zip(shares, parts, strict=True) if not np.isfinite(part).all())
                raise BadData(
                    f"the update of site {site} cannot be averaged: tensor {name!r} holds values that are not finite"
                )
            yield found


def _pieces_of(file: Tensors, name: str, share: Share) -> Iterator[Array]:
    """One site's tensor in pieces. Raises `BadData` naming the site where it cannot be decoded."""
    try:
        yield from file.pieces(name)
    except BadData as error:
        raise BadData(f"the update of site {share.site} cannot be averaged: {error}") from error


def _followers(
    rules: Sequence[ServerRule], model: TensorFile, before: TensorFile | None, round_number: int
) -> Iterator[Array]:
    """Every server tensor in pieces, in the order of `rules`."""
    for rule in rules:
        decay = min(rule.decay, (round_number - 1) / (round_number + 4))
        source = model.pieces(rule.source)
        if before is None or rule.target not in before.specs or decay <= 0.0:
            yield from source
            continue
        mean = WeightedMean((decay, 1.0 - decay))
        for parts in zip(before.pieces(rule.target), source, strict=True):
            found = mean.of(parts)
            if found is None:
                raise BadData(f"server tensor {rule.target!r} holds values that are not finite")
            yield found


def _check_rules(rules: Sequence[ServerRule], model: TensorFile, before: TensorFile | None) -> None:
    """Each rule can be followed, and each server tensor has exactly one. Raises `BadData`."""
    targets = [rule.target for rule in rules]
    kept = before.specs if before else {}
    if loose := sorted({*kept} - {*targets}):
        raise BadData(f"server tensor {loose[0]!r} follows no rule of the recipe")
    for rule in rules:
        if targets.count(rule.target) > 1:
            raise BadData(f"server tensor {rule.target!r} follows two rules of the recipe")
        source, target = model.specs.get(rule.source), kept.get(rule.target)
        if source is None:
            raise BadData(f"server tensor {rule.target!r} follows {rule.source!r}, which the model does not have")
        if target is not None and target.meaning[1:] != source.meaning[1:]:
            raise BadData(f"server tensor {rule.target!r} has another type or shape than {rule.source!r}, which it follows")


def _headers(file: TensorFile) -> list[tuple[str, str, tuple[int, ...]]]:
    return [spec.meaning for spec in file.specs.values()]


def open_tensors(path: Path, what: str) -> TensorFile:
    """The tensors of a file of ours. Raises `HistofedError` naming `what` it is: no site's fault, whatever is wrong."""
    try:
        return _opened(lambda: TensorFile(path), what)
    except BadData as error:
        raise HistofedError(f"{error}; restore it from a backup") from error


def _opened(opening: Callable[[], Opened], what: str) -> Opened:
    """Raises `BadData` for what a file holds, and `HistofedError` where the disk does not give it."""
    try:
        return opening()
    except OSError as error:
        raise HistofedError(
            f"{what} cannot be read: {os.strerror(error.errno or 0)}; repair the disk, or restore a backup"
        ) from error
    except BadData as error:
        raise BadData(f"{what} cannot be used: {error}") from error


def open_update(update: UpdateInput, base: TensorFile, form: Form) -> Tensors:
    """A site's tensors, which are those of `base` by name, type and shape.

    Raises `BadData` naming the site, and `HistofedError` for a file that the disk does not give: the site sent all of it.
    """
    what = f"the update of site {update.site}"
    file = _opened(lambda: open_encoded(update.path, base, form), what)
    with contextlib.ExitStack() as opened:
        opened.enter_context(file)
        try:
            check_same_meaning(file, base)
        except BadData as error:
            raise BadData(f"{what} cannot be averaged: {error}") from error
        opened.pop_all()
    return file
