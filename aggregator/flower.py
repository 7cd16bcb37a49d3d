"""Flower's strategies over our durable updates: the one module that knows Flower, in the aggregating child only.

`Strategy.start()` keeps its state in local variables and loses it with its process. So the two halves of a round are called
here, once per process: `configure_train` gets the round's base and exactly the sites whose updates were admitted,
`aggregate_train` gets their updates, sorted by site. What the strategy keeps for its next round (FedAdam's moments) goes
out as tensors that are committed with the model, and comes back in with the next round's job. For fixed updates the
result is therefore the same, whatever was killed in between (docs/adr/0011).

Invariants, because Flower does not keep them: the weights' sign, names, shapes, types and finite values are checked before
and after; quorum and sampling are decided before; the global generators are seeded by (experiment, round); an option that
a strategy would tell the sites, and state that this module does not know, are refused, never dropped. Nothing dials out.

Memory: a strategy holds every update and more for its own arithmetic (docs/architecture.md, "Strategies").

`aggregator/worker.py` imports it when a job asks for it; `tests/unit/aggregator/test_flower.py` is the contract with Flower.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

# Flower reports to its makers by default, and reads this when it is imported
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import flwr.serverapp.strategy
import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from aggregator.aggregate import (
    AggregateJob,
    AggregateResult,
    FlowerCall,
    UpdateInput,
    follow,
    open_tensors,
    open_update,
    shares_of,
    write_model,
)
from histofed import weights
from histofed.base.errors import BadData, HistofedError
from histofed.weights import Array, TensorFile, Tensors, Written

KEPT: Final[Mapping[str, tuple[str, ...]]] = {
    "FedAdam": ("m_t", "v_t"),
    "FedYogi": ("m_t", "v_t"),
    "FedAdagrad": ("m_t", "v_t"),
    "FedAvgM": ("momentum_vector",),
}
"""Attributes that a strategy carries from round to round: one tensor per tensor of the model each."""
_LISTS: Final = frozenset({"momentum_vector"})
"""Those that are lists in the order of the names; the others are tables by name."""
_ROUNDS_OWN: Final = frozenset({"current_arrays"})
"""Set from the round's base by each `configure_train` on a new object, so nothing to keep."""
_WEIGHT: Final = "what the update counts by"
"""Where a reply says it. A name that no site's metric can have (`statements.METRIC_NAME`): a site must not weigh itself."""
_OWN_CONFIG: Final = frozenset({"server-round"})
"""What every strategy tells the sites. The task offer says it already; anything else would not reach them."""


def aggregate(job: AggregateJob) -> AggregateResult:
    """The next model as the job's strategy makes it, what the strategy keeps, and the server tensors by their rules.

    Raises `BadData` naming the site and the tensor, or what the strategy refused, and `CannotWriteState`.
    """
    call = job.flower
    assert call is not None, "aggregate.py does the jobs without a strategy"
    updates = tuple(sorted(job.updates, key=lambda update: update.site))
    shares = shares_of(updates)
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(open_tensors(job.base, "the base model"))
        files = [stack.enter_context(open_update(update, base, job.form)) for update in updates]
        before = stack.enter_context(open_tensors(call.state, "the strategy's state")) if call.state else None
        strategy = _built(call, len(updates))
        _recall(strategy, call, before, base)
        found = _one_round(strategy, call, job.round, base, _replies(call, updates, files))
        made = _as_in(base, found, call)
        shared, step = write_model(job, base, (piece for name in base.names for piece in weights.pieces(made[name])))
        kept = _keep(strategy, call, base)
    server = follow(job.out_shared, job.state, job.rules, job.round, job.out_server) if job.rules else None
    return AggregateResult(shared, server, shares, kept, step)


class DurableGrid(Grid):
    """Flower's view of the sites: exactly the admitted ones, each of which has answered already."""

    def __init__(self, replies: Mapping[int, RecordDict]) -> None:
        self._replies = replies
        self._asked: dict[str, Message] = {}
        self._run: Any = None

    def set_run(self, run: Any) -> None:
        """Keep what Flower calls a run; nothing here depends on it."""
        self._run = run

    @property
    def run(self) -> Any:
        """What `set_run` was given."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one of the sites."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Every admitted site, by its place in the order of names, from 1; the same however often it is asked."""
        return sorted(self._replies)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages in. Their ids are ours: Flower's has no public setter."""
        names = []
        for message in messages:
            names.append(f"message-{len(self._asked) + 1}")
            self._asked[names[-1]] = message
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers to messages that were pushed, each once, in the order of sites."""
        asked = sorted((self._asked.pop(name) for name in message_ids), key=lambda one: one.metadata.dst_node_id)
        return [Message(self._replies[one.metadata.dst_node_id], reply_to=one) for one in asked]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """The answers at once, sorted by site; there is nothing to wait for."""
        return self.pull_messages(self.push_messages(messages))


def _built(call: FlowerCall, sites: int) -> Any:
    """The strategy, told to take every site that it is shown: its sampling would wait for more without end."""
    _identify()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    random.seed(call.seed)
    np.random.seed(call.seed % 2**32)  # strategies draw from the global generator
    with _words(call):
        return getattr(flwr.serverapp.strategy, call.strategy)(
            **call.options,
            fraction_train=1.0,
            min_train_nodes=sites,
            min_available_nodes=sites,
            weighted_by_key=_WEIGHT,
        )


def _identify() -> None:
    """From 1.38 on a message can only be made by a task that has an identity; it is private and global to the process."""
    try:
        identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    except ModuleNotFoundError:
        return
    identity.run_id = identity.node_id = identity.task_id = 1


def _one_round(
    strategy: Any, call: FlowerCall, number: int, base: TensorFile, replies: Mapping[int, RecordDict]
) -> Mapping[str, Array]:
    """Both halves of the round. Raises `BadData` for anything that the strategy would do unseen."""
    grid, before = DurableGrid(replies), _unkept(strategy)
    # what is not finite is looked for at the end
    with _words(call), np.errstate(all="ignore"):
        messages = list(strategy.configure_train(number, _record(base), ConfigRecord(), grid))
        _check_messages(call, messages, replies)
        arrays, _ = strategy.aggregate_train(number, list(grid.send_and_receive(messages)))
    if arrays is None:
        raise BadData(f"flower:{call.strategy} makes no model of {len(replies)} updates")
    if unknown := sorted(name for name, value in _unkept(strategy).items() if before.get(name, strategy) is not value):
        raise BadData(
            f"flower:{call.strategy} of Flower {flwr.__version__} keeps {unknown[0]!r} from round to round, which this "
            "release of histofed would lose: use a version of Flower that it supports"
        )
    return {name: array.numpy() for name, array in arrays.items()}


def _check_messages(call: FlowerCall, messages: Sequence[Message], replies: Mapping[int, RecordDict]) -> None:
    """One message for each site, which tells it nothing that a task offer does not. Raises `BadData`."""
    if sorted(message.metadata.dst_node_id for message in messages) != sorted(replies):
        raise BadData(f"flower:{call.strategy} does not ask each of the {len(replies)} sites once")
    told = {key for message in messages for config in message.content.config_records.values() for key in config}
    if extra := sorted(told - _OWN_CONFIG):
        raise BadData(
            f"flower:{call.strategy} tells the sites {extra[0]!r}, which no recipe listens to: it would have no effect"
        )


def _replies(call: FlowerCall, updates: Sequence[UpdateInput], files: Sequence[Tensors]) -> dict[int, RecordDict]:
    """Each update as Flower holds one, by node: the site's place in the order of names, from 1."""
    return {
        node: RecordDict({"arrays": _record(file, update.site), "metrics": _metrics(call, update)})
        for node, (update, file) in enumerate(zip(updates, files, strict=True), 1)
    }


def _metrics(call: FlowerCall, update: UpdateInput) -> MetricRecord:
    """What the update counts by, and the loss where the strategy weighs by it. Raises `BadData`."""
    if call.strategy != "QFedAvg":
        return MetricRecord({_WEIGHT: update.weight})
    name, reported = str(call.options.get("train_loss_key", "train_loss")), call.metrics.get(update.site, {})
    if name not in reported:
        there = f"it reports {', '.join(sorted(reported))}" if reported else "it reports none"
        raise BadData(
            f"flower:QFedAvg weighs by {name!r}, which site {update.site} does not report: {there} "
            "(aggregation.options.train_loss_key)"
        )
    if reported[name] < 0:
        raise BadData(
            f"flower:QFedAvg weighs by {name!r}, which is {reported[name]:g} at site {update.site}: it must not be negative"
        )
    return MetricRecord({_WEIGHT: update.weight, name: reported[name]})


def _record(file: Tensors, site: str = "") -> ArrayRecord:
    """A file's tensors, sorted by name; half precision as float32, so that nothing is summed in it. Raises `BadData`."""
    found = {}
    for name in file.specs:
        array = file.copy(name)
        if site and not np.isfinite(array).all():
            raise BadData(f"the update of site {site} cannot be averaged: tensor {name!r} holds values that are not finite")
        found[name] = FlowerArray(array.astype(np.float32) if array.dtype == np.float16 else array)
    return ArrayRecord(found)


def _as_in(base: TensorFile, found: Mapping[str, Array], call: FlowerCall) -> dict[str, Array]:
    """The strategy's tensors in the base's types; names and shapes are the same, values finite. Raises `BadData`."""
    if sorted(found) != list(base.names):
        raise BadData(f"flower:{call.strategy} made tensors that are not the model's")
    made = {}
    for name, old in base.items():
        if found[name].shape != old.shape:
            raise BadData(f"flower:{call.strategy} made tensor {name!r} of shape {found[name].shape} out of {old.shape}")
        with np.errstate(over="ignore", invalid="ignore"):
            made[name] = found[name].astype(old.dtype)
        if not np.isfinite(made[name]).all():
            raise BadData(
                f"flower:{call.strategy} made values that are not finite in tensor {name!r}; smaller steps may help "
                "(aggregation.options)"
            )
    return made


def _keep(strategy: Any, call: FlowerCall, base: TensorFile) -> Written | None:
    """Write what the strategy needs in its next round; None where it needs nothing. Raises `BadData`."""
    kept: dict[str, Array] = {}
    for attribute in KEPT.get(call.strategy, ()):
        values = getattr(strategy, attribute)
        if values is None:  # a momentum of zero is never made
            continue
        named = dict(zip(base.names, values, strict=True)) if attribute in _LISTS else values
        kept |= {f"{attribute}/{name}": np.asarray(named[name]) for name in base.names}
    if bad := sorted(name for name, array in kept.items() if not np.isfinite(array).all()):
        raise BadData(f"flower:{call.strategy} keeps values that are not finite in {bad[0]!r}; smaller steps may help")
    return weights.save(call.out_state, kept) if kept else None


def _recall(strategy: Any, call: FlowerCall, before: TensorFile | None, base: TensorFile) -> None:
    """Give the strategy what it kept after the round before. Raises `BadData` where that is not this model's."""
    if before is None:
        return
    known = {f"{attribute}/{name}": (attribute, name) for attribute in KEPT.get(call.strategy, ()) for name in base.names}
    if unknown := sorted({*before.names} - {*known}):
        raise BadData(
            f"the strategy's state cannot be used: {unknown[0]!r} is not part of flower:{call.strategy} over this model"
        )
    found: dict[str, dict[str, Array]] = {}
    for full, (attribute, name) in known.items():
        if full in before.specs:
            if before.specs[full].shape != base.specs[name].shape:
                raise BadData(f"the strategy's state cannot be used: {full!r} has another shape than the model")
            found.setdefault(attribute, {})[name] = before.copy(full)
    for attribute, named in found.items():
        if {*named} != {*base.names}:
            raise BadData(f"the strategy's state cannot be used: {attribute!r} lacks tensors of the model")
        setattr(strategy, attribute, [named[name] for name in base.names] if attribute in _LISTS else named)


def _unkept(strategy: Any) -> dict[str, object]:
    """The attributes that must not change in a round, because nothing of them would be there in the next."""
    kept = {name for names in KEPT.values() for name in names}
    return {name: value for name, value in vars(strategy).items() if name not in kept | _ROUNDS_OWN}


@contextlib.contextmanager
def _words(call: FlowerCall) -> Iterator[None]:
    """What goes wrong in Flower's code becomes a sentence for the operator: the round is abandoned, the daemon goes on."""
    try:
        yield
    except HistofedError:
        raise
    except MemoryError as error:
        raise BadData(
            f"flower:{call.strategy} holds every update in memory, and there is too little of it: sample fewer sites, give "
            'the aggregator more, or say strategy = "fedavg"'
        ) from error
    except Exception as error:
        raise BadData(f"flower:{call.strategy} failed: {type(error).__name__}: {error}") from error
