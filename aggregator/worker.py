"""The child process that does the aggregator's arithmetic: one job, then it ends.

The daemon's loop never waits for arithmetic, and what goes wrong here (a killed process, a full memory) goes wrong here
alone. `python -m aggregator.worker PARENT` reads a job as JSON from standard input, prints its result or its error as one
JSON document, and exits with 0 or the error's code. It dies with its parent.

Start-up is part of every round, so only numpy and the standard library are imported for `aggregate`, `check` and `inspect`;
torch comes with a recipe's workshop, for `initialise`, and Flower only with an `aggregate` that names a strategy of its own.
`aggregator/pool.py` starts it, as a rule from a nursery (`histofed/base/nursery.py`) in which this module is imported.
"""

from __future__ import annotations

import os
import sys

from aggregator.aggregate import AggregateJob, AggregateResult, aggregate, check_kept, follow
from aggregator.first import check_tensors as check_first
from aggregator.inspection import check_tensors
from aggregator.jobs import (
    CheckJob,
    InitialiseJob,
    InitialiseResult,
    InspectJob,
    InspectResult,
    Job,
    Result,
    decode_job,
    encode_error,
    encode_result,
)
from histofed.base import durable
from histofed.base.errors import BadData, HistofedError
from histofed.base.hashing import sha256_file
from histofed.base.process import die_with
from histofed.recipes.contract import Recipe
from histofed.weights import TensorFile, Written, difference


def main() -> int:
    """Do the job on standard input. Returns the exit code."""
    die_with(int(sys.argv[1]))
    answer = os.dup(1)
    os.dup2(2, 1)  # a library that prints must not end up in the answer
    try:
        output, code = encode_result(perform(decode_job(sys.stdin.buffer.read()))), 0
    except HistofedError as error:
        output, code = encode_error(error), error.exit_code
    rest = memoryview(output)
    while rest:
        rest = rest[os.write(answer, rest) :]
    return code


def perform(job: Job) -> Result:
    """Any job. Raises what it raises: `BadData`, `CannotWriteState`, and `HistofedError` for files of ours that changed."""
    match job:
        case AggregateJob():
            check_kept(job.kept)
            return aggregate(job) if job.flower is None else _aggregate_with_flower(job)
        case CheckJob():
            check_kept(job.files)
            return None
        case InspectJob():
            return InspectResult(check_tensors(job.update, job.base, job.max_norm, job.form))
        case InitialiseJob():
            return _initialise(job)


def _aggregate_with_flower(job: AggregateJob) -> AggregateResult:
    try:
        from aggregator import flower
    except ImportError as error:
        raise BadData(f"Flower cannot be imported ({error}): install histofed[flower] at the aggregator") from error
    return flower.aggregate(job)


def _initialise(job: InitialiseJob) -> InitialiseResult:
    recipe = _recipe(job.recipe)
    if job.given is not None:
        durable.link(job.given, job.out_shared)
        check_first(recipe, job.config, job.out_shared, job.seed, job.out_shared.with_suffix(".drawn"))
    else:
        _draw(recipe, job)
    names = _usable(job)
    shared = Written(sha256_file(job.out_shared), job.out_shared.stat().st_size)
    rules = recipe.server_rules(job.config, names)
    return InitialiseResult(shared, follow(job.out_shared, None, rules, 1, job.out_server) if rules else None)


def _draw(recipe: Recipe, job: InitialiseJob) -> None:
    try:
        workshop = recipe.workshop()
    except ImportError as error:
        raise BadData(
            f"the first weights of recipe {job.recipe!r} cannot be drawn here ({error}): draw them where torch is "
            "(`histofed experiments draw FILE --out WEIGHTS`), give them to this aggregator (`histofed-aggregator first "
            "NAME WEIGHTS`), and submit the experiment under another name"
        ) from error
    workshop.initialise(job.config, job.seed, job.out_shared)


def _usable(job: InitialiseJob) -> tuple[str, ...]:
    """The first tensors' names; they are floating and finite, or no site's update could ever enter. Raises `BadData`."""
    with TensorFile(job.out_shared) as first:
        if bad := difference(first, first).not_finite:
            raise BadData(f"recipe {job.recipe!r} begins with values that are not finite in tensor {bad[0]!r}")
        return first.names


def _recipe(name: str) -> Recipe:
    from histofed.recipes.registry import recipe

    return recipe(name)


if __name__ == "__main__":
    sys.exit(main())
