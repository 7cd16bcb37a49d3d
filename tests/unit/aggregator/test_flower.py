"""The contract with Flower: what its strategies do over our updates, and each of its traps closed.

`make test-flower` runs this file on the first, a middle and the last version of Flower that is supported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# it turns Flower's telemetry off before Flower is imported
from aggregator import flower

# isort: split
import flwr.serverapp.strategy
import numpy as np
import pytest
from flwr.app import Array as FlowerArray
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from aggregator.aggregate import AggregateJob, AggregateResult, FlowerCall, UpdateInput, aggregate
from aggregator.jobs import encode_job
from aggregator.pool import Workers
from aggregator.strategies import REFUSED, RESERVED, STRATEGIES
from histofed import weights
from histofed.base.clock import FakeClock, SystemClock
from histofed.base.errors import BadData, WorkerKilled
from histofed.recipes.contract import ServerRule
from histofed.weights import Array, TensorFile

Tensors = Mapping[str, Array]
OPTIONS: Mapping[str, Mapping[str, float | int | str]] = {
    "FedAvgM": {"server_momentum": 0.9},
    "FedAdam": {"eta": 0.01},
    "FedTrimmedAvg": {"beta": 0.2},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 2},
    "Bulyan": {"num_malicious_nodes": 1},
    "QFedAvg": {"client_learning_rate": 0.1, "train_loss_key": "loss"},
}
SITES = ("east", "north", "south", "west", "mid", "isle", "hill")
"""Seven: as many as Bulyan needs against one liar."""


def tensors(seed: int) -> dict[str, Array]:
    """Three types, a scalar, and a tensor that holds nothing."""
    draw = np.random.default_rng(seed)
    return {
        "w": draw.standard_normal((3, 5)).astype(np.float32),
        "half": draw.standard_normal((7,)).astype(np.float16),
        "scalar": np.array(draw.standard_normal(), np.float32),
        "none": np.zeros((0, 4), np.float32),
        "wide": draw.standard_normal((2, 3)),
    }


class Bench:
    """Files of an experiment in a folder."""

    def __init__(self, folder: Path, strategy: str, options: Mapping[str, float | int | str] | None = None) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.strategy = strategy
        self.options = OPTIONS.get(strategy, {}) if options is None else options
        self.write("shared-0", tensors(0))

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def write(self, name: str, content: Tensors) -> Path:
        weights.save(self.path(name), content)
        return self.path(name)

    def job(self, number: int = 1, updates: Mapping[str, Tensors] | None = None, **more: Any) -> AggregateJob:
        """A round over the model before it, with the state that the round before left."""
        content = updates or {site: tensors(100 * number + index) for index, site in enumerate(SITES)}
        state = self.path(f"strategy-{number - 1}")
        call = FlowerCall(
            strategy=self.strategy,
            options=self.options,
            seed=7 * number,
            metrics=more.pop("metrics", {site: {"loss": 1.0 + index} for index, site in enumerate(content)}),
            state=state if state.exists() else None,
            out_state=self.path(f"strategy-{number}"),
        )
        job = AggregateJob(
            base=self.path(f"shared-{number - 1}"),
            updates=tuple(
                UpdateInput(site, self.write(f"{site}-{number}", one), 10 + index)
                for index, (site, one) in enumerate(content.items())
            ),
            state=None,
            rules=(),
            round=number,
            out_shared=self.path(f"shared-{number}"),
            out_server=None,
            flower=call,
        )
        return dataclasses.replace(job, **more)

    def rounds(self, count: int) -> list[AggregateResult]:
        return [flower.aggregate(self.job(number)) for number in range(1, count + 1)]


@pytest.fixture(autouse=True)
def generators() -> Iterator[None]:
    """A strategy's child seeds the global generators; here they belong to everybody."""
    states = random.getstate(), np.random.get_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])


# --- Flower's names and signatures --------------------------------------------------------------------------------------


def test_every_name_of_flower_is_supported_or_refused() -> None:
    assert {*flwr.serverapp.strategy.__all__} <= {*STRATEGIES, *REFUSED}
    assert not {*STRATEGIES} & {*REFUSED}


NO_DEFAULT_OF_OURS = {"train_loss_key"}
"""Options whose default in Flower, a name that no recipe reports, never makes a model here."""


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_table_is_what_flower_takes(name: str) -> None:
    parameters = dict(inspect.signature(getattr(flwr.serverapp.strategy, name)).parameters)
    options = STRATEGIES[name].options
    assert {*parameters} - {*RESERVED} == {*options}
    for option, rule in options.items():
        default = parameters[option].default
        if rule.required and option not in NO_DEFAULT_OF_OURS:
            assert default is inspect.Parameter.empty
            continue
        assert type(default) is rule.kind
        assert rule.allows(default)


# --- what comes out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_makes_a_finite_model_with_the_names_types_and_shapes_of_its_base(tmp_path: Path, name: str) -> None:
    bench = Bench(tmp_path, name)
    result = bench.rounds(2)[-1]
    found, base = weights.read(bench.path("shared-2")), tensors(0)
    assert {key: (one.dtype, one.shape) for key, one in found.items()} == {
        key: (one.dtype, one.shape) for key, one in base.items()
    }
    assert all(np.isfinite(one).all() for one in found.values())
    assert (result.strategy is not None) == (name in flower.KEPT)
    assert [share.site for share in result.shares] == sorted(SITES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_neither_order_nor_repetition_nor_the_process_changes_a_bit(tmp_path: Path, name: str) -> None:
    bench = Bench(tmp_path, name)
    job = bench.job()
    orders = itertools.islice(itertools.permutations(job.updates), 0, 5040, 2500)
    found = set()
    for turn, order in enumerate(orders):
        random.seed(turn)
        found.add(flower.aggregate(dataclasses.replace(job, updates=order)))
    assert len(found) == 1


def test_fedavg_is_our_fedavg(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "FedAvg")
    job = bench.job()
    theirs, ours = flower.aggregate(job), aggregate(dataclasses.replace(job, out_shared=bench.path("ours"), flower=None))
    assert theirs.shares == ours.shares
    for name, array in weights.read(bench.path("ours")).items():
        one = weights.read(bench.path("shared-1"))[name]
        np.testing.assert_allclose(one, array, rtol=0, atol=1e-3 if array.dtype == np.float16 else 1e-6)


def test_half_precision_is_not_summed_in_half_precision(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "FedAvg")
    draw = np.random.default_rng(1)
    many = {f"site-{index}": {"w": draw.standard_normal(1000).astype(np.float16)} for index in range(12)}
    bench.write("shared-0", {"w": np.zeros(1000, np.float16)})
    job = bench.job(updates=many)
    flower.aggregate(job)
    counts = np.array([update.weight for update in job.updates], np.float64)
    exact = np.average([one["w"].astype(np.float64) for one in many.values()], axis=0, weights=counts)
    found = weights.read(bench.path("shared-1"))["w"]
    assert np.mean(found != exact.astype(np.float16)) < 0.01, "it is rounded once, at the end"


def test_the_server_tensors_follow_as_they_follow_the_mean(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "FedMedian")
    rule = ServerRule("ema.w", "w", 0.9)
    flower.aggregate(bench.job(rules=(rule,), out_server=bench.path("server")))
    np.testing.assert_array_equal(weights.read(bench.path("server"))["ema.w"], weights.read(bench.path("shared-1"))["w"])


# --- what is kept from round to round -----------------------------------------------------------------------------------


def fedadam(bases: list[Array], means: list[Array], eta: float) -> Array:
    """Reddi et al. 2021, algorithm 2, with Adam's bias correction as Flower has it; beta 0.9 and 0.99, tau 1e-3."""
    m, v, made = np.zeros_like(means[0]), np.zeros_like(means[0]), bases[0]
    for number, (base, mean) in enumerate(zip(bases, means, strict=True), 1):
        m = 0.9 * m + 0.1 * (mean - base)
        v = 0.99 * v + 0.01 * (mean - base) ** 2
        step = eta * np.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1))
        made = base + step * m / (np.sqrt(v) + 1e-3)
    return made


def test_fedadam_has_the_moments_of_all_rounds(tmp_path: Path) -> None:
    bench, plain = Bench(tmp_path / "adam", "FedAdam"), Bench(tmp_path / "plain", "FedAvg")
    bench.rounds(3)
    plain.rounds(3)  # the same updates, averaged
    bases = [weights.read(bench.path(f"shared-{number}"))["w"].astype(np.float64) for number in range(3)]
    means = [weights.read(plain.path(f"shared-{number}"))["w"].astype(np.float64) for number in (1, 2, 3)]
    np.testing.assert_allclose(weights.read(bench.path("shared-3"))["w"], fedadam(bases, means, 0.01), atol=1e-5)


@pytest.mark.parametrize("name", flower.KEPT)
def test_a_new_process_for_each_round_ends_where_one_for_all_rounds_would(tmp_path: Path, name: str) -> None:
    bench = Bench(tmp_path, name)
    bench.rounds(3)
    call = bench.job(3).flower
    assert call is not None
    strategy = flower._built(call, len(SITES))
    for number in (1, 2, 3):
        job = bench.job(number)
        updates = sorted(job.updates, key=lambda update: update.site)
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(TensorFile(update.path)) for update in updates]
            base = stack.enter_context(TensorFile(bench.path(f"shared-{number - 1}")))
            alive = flower._one_round(strategy, call, number, base, flower._replies(call, updates, files))
    for key, array in weights.read(bench.path("shared-3")).items():
        np.testing.assert_allclose(array, alive[key], rtol=0, atol=2e-3 if array.dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("name", flower.KEPT)
def test_what_was_kept_matters(tmp_path: Path, name: str) -> None:
    bench = Bench(tmp_path, name)
    first, second = bench.rounds(2)
    assert first.strategy is not None
    bench.path("strategy-1").unlink()
    assert flower.aggregate(bench.job(2)).shared != second.shared


async def test_a_child_killed_between_its_files_in_each_round_ends_with_the_undisturbed_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = Bench(tmp_path / "quiet", "FedAdam").rounds(3)

    class Healing(FakeClock):
        async def sleep(self, seconds: float) -> None:
            monkeypatch.delenv("HISTOFED_FAILPOINTS")
            await super().sleep(seconds)

    bench, found = Bench(tmp_path / "killed", "FedAdam"), []
    # the model is written first, then the moments: dead before both, between them, after both
    for number, point in enumerate(("before_rename=kill", "before_rename=kill:2", "after_rename=kill:2"), 1):
        job = bench.job(number)
        monkeypatch.setenv("HISTOFED_FAILPOINTS", f"replace.{point}")
        clock = Healing()
        found.append(await Workers(clock).run(job))
        assert clock.monotonic() == 1, "it was killed once"
    assert found == undisturbed


async def test_a_daemon_that_dies_with_its_child_goes_on_from_the_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = Bench(tmp_path / "quiet", "FedAdam").rounds(2)
    bench = Bench(tmp_path / "killed", "FedAdam")
    first = await Workers(SystemClock()).run(bench.job(1))
    monkeypatch.setenv("HISTOFED_FAILPOINTS", "replace.before_rename=kill:2")
    with pytest.raises(WorkerKilled):
        await Workers(FakeClock(), attempts=1).run(bench.job(2))
    monkeypatch.delenv("HISTOFED_FAILPOINTS")
    assert bench.path("shared-2").exists() and not bench.path("strategy-2").exists(), "it died between the two"
    assert [first, await Workers(SystemClock()).run(bench.job(2))] == undisturbed


# --- traps --------------------------------------------------------------------------------------------------------------


def test_one_site_is_enough_and_nobody_is_waited_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "FedAvg")
    result = flower.aggregate(bench.job(updates={"north": tensors(5)}))
    assert bench.path("shared-1").read_bytes() == bench.path("north-1").read_bytes()
    assert [share.weight for share in result.shares] == [1.0]


def test_the_global_generators_are_seeded_by_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Drawing(flwr.serverapp.strategy.FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            arrays, metrics = super().aggregate_train(server_round, replies)
            assert arrays is not None
            drawn = random.random() + np.random.random()
            return type(arrays)({k: FlowerArray(np.asarray(v.numpy() + drawn)) for k, v in arrays.items()}), metrics

    monkeypatch.setattr(flwr.serverapp.strategy, "FedAvg", Drawing)
    bench = Bench(tmp_path, "FedAvg")
    job = bench.job()
    assert job.flower is not None
    found = flower.aggregate(job).shared
    random.seed(99)
    np.random.seed(99)
    assert flower.aggregate(job).shared == found
    assert flower.aggregate(dataclasses.replace(job, flower=dataclasses.replace(job.flower, seed=8))).shared != found


@pytest.mark.parametrize("name", ["FedAvg", "FedMedian", "FedAdam"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"w": np.zeros((1, 5), np.float32)}, r"site south cannot be averaged: tensor 'w' is F32\[1, 5\]"),
        ({"w": np.zeros((3, 5), np.float64)}, "site south cannot be averaged: tensor 'w' is F64"),
        ({"w": np.full((3, 5), np.nan, np.float32)}, "site south cannot be averaged: tensor 'w' holds values"),
        ({"wide": np.full((2, 3), np.inf)}, "site south cannot be averaged: tensor 'wide' holds values"),
        ({"new": np.zeros(1, np.float32)}, "site south cannot be averaged: tensor 'new' is unknown"),
    ],
)
def test_an_update_that_flower_would_take_is_refused(
    tmp_path: Path, name: str, change: Mapping[str, Array], words: str
) -> None:
    bench = Bench(tmp_path, name)
    updates = {site: tensors(index) for index, site in enumerate(SITES)}
    with pytest.raises(BadData, match=words):
        flower.aggregate(bench.job(updates=updates | {"south": {**updates["south"], **change}}))
    assert not bench.path("shared-1").exists()


def test_integer_buffers_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "FedAvg")
    counted = {"n": np.array([3], np.int64)}
    bench.write("shared-0", counted)
    with pytest.raises(BadData, match="'n' of type I64 cannot be averaged"):
        flower.aggregate(bench.job(updates={"north": counted}))


@pytest.mark.parametrize("weight", [0, -1])
def test_a_weight_that_is_not_above_zero_is_refused(tmp_path: Path, weight: int) -> None:
    job = Bench(tmp_path, "FedAvg").job()
    light = dataclasses.replace(job.updates[0], weight=weight)
    with pytest.raises(BadData, match="must be above zero"):
        flower.aggregate(dataclasses.replace(job, updates=(light, *job.updates[1:])))


def test_a_site_cannot_weigh_itself_by_a_metric(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "QFedAvg")
    honest = {site: {"loss": 1.0} for site in SITES}
    found = flower.aggregate(bench.job(metrics=honest)).shared
    loud = honest | {"hill": {"loss": 1.0, "num-examples": 1e9, "weight": 1e9}}
    assert flower.aggregate(bench.job(metrics=loud)).shared == found


def test_too_few_updates_make_no_model(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "Bulyan")
    with pytest.raises(BadData, match="flower:Bulyan makes no model of 6 updates"):
        flower.aggregate(bench.job(updates={site: tensors(index) for index, site in enumerate(SITES[:6])}))


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({}, "weighs by 'loss', which site east does not report: it reports none"),
        ({site: {"distance": 1.0} for site in SITES}, "site east does not report: it reports distance"),
        ({site: {"loss": -1.0} for site in SITES}, "must not be negative"),
    ],
)
def test_a_loss_that_cannot_be_weighed_by_is_refused(
    tmp_path: Path, metrics: Mapping[str, Mapping[str, float]], words: str
) -> None:
    with pytest.raises(BadData, match=words):
        flower.aggregate(Bench(tmp_path, "QFedAvg").job(metrics=metrics))


def test_what_a_strategy_would_tell_the_sites_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "FedProx", {"proximal_mu": 0.1})
    with pytest.raises(BadData, match="flower:FedProx tells the sites 'proximal-mu', which no recipe listens to"):
        flower.aggregate(bench.job())


@pytest.mark.parametrize("name", ["FedAvg", "FedAdam"])
def test_state_that_nobody_would_keep_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(getattr(flwr.serverapp.strategy, name)):  # type: ignore[misc]  # any of them, by name
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            self.steps = getattr(self, "steps", 0) + 1
            return super().aggregate_train(server_round, replies)

    monkeypatch.setattr(flwr.serverapp.strategy, name, Counting)
    bench = Bench(tmp_path, name)
    with pytest.raises(BadData, match=rf"flower:{name} of Flower .* keeps 'steps' from round to round"):
        flower.aggregate(bench.job())
    assert not bench.path("shared-1").exists()


def test_a_step_that_leaves_the_numbers_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "FedAvgM", {"server_learning_rate": 1e9})
    with pytest.raises(BadData, match="flower:FedAvgM made values that are not finite in tensor 'half'"):
        flower.aggregate(bench.job())


def test_what_fails_inside_flower_is_a_sentence(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "FedTrimmedAvg", {"beta": 0.6})
    with pytest.raises(BadData, match=r"flower:FedTrimmedAvg failed: (ValueError|AggregationError): "):
        flower.aggregate(bench.job())


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"m_t/w": np.zeros((3, 5), np.float32)}, "'m_t' lacks tensors of the model"),
        ({"m_t/w": np.zeros((5, 3), np.float32)}, "'m_t/w' has another shape"),
        ({"momentum_vector/w": np.zeros((3, 5), np.float32)}, "'momentum_vector/w' is not part of flower:FedAdam"),
    ],
)
def test_state_of_another_model_or_strategy_is_refused(tmp_path: Path, state: Tensors, words: str) -> None:
    bench = Bench(tmp_path, "FedAdam")
    bench.write("strategy-0", state)
    with pytest.raises(BadData, match=words):
        flower.aggregate(bench.job())


def test_the_grid_answers_messages_however_they_are_sent() -> None:
    contents = {node: RecordDict({"metrics": MetricRecord({"n": node})}) for node in (2, 1, 3)}
    grid = flower.DurableGrid(contents)
    flower._identify()
    grid.set_run("a run")
    assert grid.run == "a run"
    assert list(grid.get_node_ids()) == list(grid.get_node_ids()) == [1, 2, 3]
    messages = [grid.create_message(RecordDict({"c": ConfigRecord()}), "train", node, "1") for node in (3, 1)]
    replies = list(grid.pull_messages(grid.push_messages(messages)))
    assert [reply.metadata.src_node_id for reply in replies] == [1, 3]
    assert [reply.content["metrics"]["n"] for reply in grid.send_and_receive(messages, timeout=0)] == [1, 3]
    assert not any(reply.has_error() for reply in replies)


WATCHED = """
import sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        sys.stderr.write(f"DIALLED {event} {arguments}")
    if event == "subprocess.Popen":
        sys.stderr.write(f"STARTED {arguments}")
sys.addaudithook(hook)
sys.argv = ["worker", sys.argv[1]]
import atexit
from aggregator import worker
code = worker.main()
from importlib import import_module
for module in ("flwr.supercore.telemetry", "flwr.common.telemetry"):
    try:
        assert import_module(module).FLWR_TELEMETRY_ENABLED == "0", module
    except ModuleNotFoundError:
        continue
sys.exit(code)
"""


def test_a_fresh_child_needs_no_identity_and_dials_nobody(tmp_path: Path) -> None:
    job = Bench(tmp_path, "FedAdam").job()
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(os.getpid())], input=encode_job(job), capture_output=True, check=False, env=quiet
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"DIALLED" not in done.stderr and b"STARTED" not in done.stderr, done.stderr.decode()
    assert job.out_shared.exists()
