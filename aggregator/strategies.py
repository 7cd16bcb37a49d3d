"""Which of Flower's strategies an experiment may name, and which numbers it may give them: a table, without Flower.

The daemon asks here when an experiment is submitted, so that a mistake is a sentence to the operator and not a round that
fails. Flower itself is imported in the aggregating child only (`aggregator/flower.py`), and
`tests/unit/aggregator/test_flower.py` holds this table to Flower's own signatures over the supported versions.

Flower checks little by itself, so the ranges are those of the papers. What is left out is left out in words: sampling,
quorum and weighting are `[sampling]`'s, `[round]`'s and `[aggregation]`'s; functions cannot stand in data.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from aggregator.aggregate import FlowerCall
from histofed.base.errors import BadData
from histofed.base.experiment import FLOWER, Aggregation, Experiment, ExperimentFile
from histofed.base.seeds import seed
from histofed.base.words import one_line
from histofed.statements import METRIC_NAME

Value: TypeAlias = float | int | str
Options: TypeAlias = Mapping[str, Value]

VERSIONS: Final = ((1, 30), (1, 43))
"""The first version of Flower that is supported, and the first that is not; `make test-flower` proves them."""


@dataclass(frozen=True)
class Option:
    """One option: its kind, and the range that a number must lie in, in words too."""

    kind: type[float] | type[int] | type[str]
    allows: Callable[[Value], bool] = lambda value: True
    words: str = ""
    required: bool = False


@dataclass(frozen=True)
class Strategy:
    """One of Flower's strategies."""

    options: Mapping[str, Option] = field(default_factory=dict)
    least_updates: Callable[[Options], int] = lambda options: 1
    """Fewer than this and it makes no model, or one that it does not vouch for."""


_LARGEST: Final = 1e18
"""No option has a use for a number this large, and a whole number of any length would not be one that numpy knows."""
_ABOVE_ZERO: Final = Option(float, lambda value: float(value) > 0, "above 0")
_DECAY: Final = Option(float, lambda value: 0 <= float(value) < 1, "at least 0 and below 1")
_COUNT: Final = Option(int, lambda value: int(value) >= 0, "0 or more")
_ADAGRAD: Final = {"eta": _ABOVE_ZERO, "tau": _ABOVE_ZERO}
_ADAM: Final = _ADAGRAD | {"beta_1": _DECAY, "beta_2": _DECAY}


def _krum(options: Options) -> int:
    """2 f + 3 updates (Blanchard et al. 2017, proposition 4.2), and m + f + 2 to choose m of them from."""
    malicious, chosen = int(options.get("num_malicious_nodes", 0)), int(options.get("num_nodes_to_select", 1))
    return max(2 * malicious + 3, chosen + malicious + 2)


def _bulyan(options: Options) -> int:
    """4 f + 3 updates (El Mhamdi et al. 2018, section 4)."""
    return 4 * int(options.get("num_malicious_nodes", 0)) + 3


def _is_metric(value: Value) -> bool:
    return re.fullmatch(METRIC_NAME, str(value)) is not None


STRATEGIES: Final[Mapping[str, Strategy]] = {
    "FedAvg": Strategy(),
    "FedAvgM": Strategy({"server_learning_rate": _ABOVE_ZERO, "server_momentum": _DECAY}),
    "FedAdam": Strategy(_ADAM),
    "FedYogi": Strategy(_ADAM),
    "FedAdagrad": Strategy(_ADAGRAD),
    "FedMedian": Strategy(),
    "FedTrimmedAvg": Strategy({"beta": Option(float, lambda value: 0 <= float(value) < 0.5, "at least 0 and below 0.5")}),
    "Krum": Strategy({"num_malicious_nodes": _COUNT}, _krum),
    "MultiKrum": Strategy(
        {"num_malicious_nodes": _COUNT, "num_nodes_to_select": Option(int, lambda value: int(value) >= 1, "1 or more")},
        _krum,
    ),
    "Bulyan": Strategy({"num_malicious_nodes": _COUNT}, _bulyan),
    "QFedAvg": Strategy(
        {
            "client_learning_rate": Option(float, lambda value: float(value) > 0, "above 0", required=True),
            "q": Option(float, lambda value: float(value) >= 0, "0 or more"),
            # a default would be a name that no recipe reports
            "train_loss_key": Option(str, _is_metric, "the name of a metric that every site reports", required=True),
        }
    ),
}
"""By the name that Flower gives them."""

_NO_PRIVACY: Final = "its clipping leaves tensors without dimensions unclipped; histofed brings its own privacy"
_NO_TREES: Final = "it joins decision trees, and an update is tensors"
_NO_MASKS: Final = "its masks hang on 28 bits, and it runs only in a loop that keeps its state in local variables"
_NO_STRATEGY: Final = "it is no strategy that makes a model"
REFUSED: Final[Mapping[str, str]] = {
    "FedProx": "its proximal term belongs into the loss at the site, which no recipe adds; at the aggregator it is FedAvg",
    "DifferentialPrivacyClientSideAdaptiveClipping": _NO_PRIVACY,
    "DifferentialPrivacyClientSideFixedClipping": _NO_PRIVACY,
    "DifferentialPrivacyServerSideAdaptiveClipping": _NO_PRIVACY,
    "DifferentialPrivacyServerSideFixedClipping": _NO_PRIVACY,
    "FedXgbBagging": _NO_TREES,
    "FedXgbCyclic": _NO_TREES,
    "SecAggWorkflow": _NO_MASKS,
    "SecAggPlusWorkflow": _NO_MASKS,
    "Strategy": _NO_STRATEGY,
    "Result": _NO_STRATEGY,
}
"""What Flower has and does not run here, each with its reason."""

_SAMPLING: Final = "who takes part is said in [sampling] and [round]"
_WEIGHTS: Final = "what an update counts by is said in aggregation.weights"
_RECORDS: Final = "it names a record of Flower's own messages, which do not travel here"
_CODE: Final = "it is a function, and an experiment is data"
RESERVED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("fraction_train", "min_train_nodes", "min_available_nodes"), _SAMPLING),
    **dict.fromkeys(("fraction_evaluate", "min_evaluate_nodes"), "evaluation is not the strategy's"),
    "weighted_by_key": _WEIGHTS,
    **dict.fromkeys(("arrayrecord_key", "configrecord_key"), _RECORDS),
    **dict.fromkeys(("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn", "selection_rule"), _CODE),
    "eta_l": "it is the sites' learning rate, which the recipe's [config] says",
}
"""Options of Flower's that are not given, each with its reason."""


def check_strategy(file: ExperimentFile, installed: str | None) -> None:
    """The experiment's strategy can run here, with its options; `installed` is `flower_version()`.

    Raises `BadData` with one sentence that says what to change.
    """
    name = file.aggregation.flower
    if name is None:
        return
    strategy = _strategy(name)
    for option, value in file.aggregation.options.items():
        _check_option(name, strategy, option, value)
    for option, rule in strategy.options.items():
        if rule.required and option not in file.aggregation.options:
            raise BadData(f"{FLOWER}{name} needs a value for aggregation.options.{option}")
    least, quorum = strategy.least_updates(file.aggregation.options), file.round.quorum
    if quorum < least:
        raise BadData(
            f"{FLOWER}{name} needs {least} updates with these options: raise round.quorum from {quorum} to {least}"
        )
    _check_version(name, installed)


def flower_version() -> str | None:
    """The version of Flower that is installed; None without it. Imports nothing of it."""
    try:
        return importlib.metadata.version("flwr")
    except importlib.metadata.PackageNotFoundError:
        return None


def weighing_loss(rules: Aggregation) -> str | None:
    """The metric that the strategy weighs updates by, so that each has to report it; None where it weighs by none."""
    if rules.flower != "QFedAvg":
        return None
    # Flower's default, in experiments of before it had to be given
    return str(rules.options.get("train_loss_key", "train_loss"))


def flower_call(
    experiment: Experiment,
    round_number: int,
    metrics: Mapping[str, Mapping[str, float]],
    state: Path | None,
    out_state: Path,
) -> FlowerCall | None:
    """What the aggregating child is told of the experiment's strategy; None for our own mean."""
    rules = experiment.file.aggregation
    if rules.flower is None:
        return None
    drawn = seed("strategy", experiment.name, round_number)
    return FlowerCall(rules.flower, rules.options, drawn, metrics, state, out_state)


def _strategy(name: str) -> Strategy:
    if name in STRATEGIES:
        return STRATEGIES[name]
    if name in REFUSED:
        raise BadData(f"{FLOWER}{name} does not run here: {REFUSED[name]}")
    near = difflib.get_close_matches(name, STRATEGIES, n=1)
    raise BadData(
        f"Flower has no strategy {name[:60]!r} that runs here"
        + (f" (did you mean {FLOWER}{near[0]}?)" if near else f"; there are {', '.join(sorted(STRATEGIES))}")
    )


def _check_option(name: str, strategy: Strategy, option: str, value: object) -> None:
    where = f"aggregation.options.{option[:60]}"
    if option in RESERVED:
        raise BadData(f"{where} cannot be given: {RESERVED[option]}")
    rule = strategy.options.get(option)
    if rule is None:
        near = difflib.get_close_matches(option, strategy.options, n=1)
        has = f"it has {', '.join(strategy.options)}" if strategy.options else "it has none"
        raise BadData(f"{where} is not an option of {FLOWER}{name}: " + (f"did you mean {near[0]}?" if near else has))
    fits = isinstance(value, (int, float) if rule.kind is float else rule.kind) and not isinstance(value, bool)
    if not fits or not isinstance(value, (int, float, str)):
        kind = {float: "a number", int: "a whole number", str: "a text"}[rule.kind]
        raise BadData(f"{where} must be {kind}; it is {str(value)[:60]!r}")
    if not isinstance(value, str) and not abs(value) < _LARGEST:  # so that NaN is refused too
        raise BadData(f"{where} must be finite and below {_LARGEST:g}; it is {str(value)[:60]}")
    if not rule.allows(value):
        raise BadData(f"{where} must be {rule.words}; it is {one_line(str(value), 60)}")


def _check_version(name: str, installed: str | None) -> None:
    first, beyond = (".".join(map(str, version)) for version in VERSIONS)
    if installed is None:
        raise BadData(
            f"{FLOWER}{name} needs Flower, which this aggregator does not have: install histofed[flower] there, "
            'or say strategy = "fedavg"'
        )
    found = re.match(r"(\d+)\.(\d+)", installed)
    if found is None or not VERSIONS[0] <= (int(found[1]), int(found[2])) < VERSIONS[1]:
        raise BadData(
            f"{FLOWER}{name} cannot run on Flower {installed}, which this aggregator has: "
            f"histofed works with {first} up to, not including, {beyond}"
        )
