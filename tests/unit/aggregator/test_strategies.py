"""What an experiment may say of Flower's strategies: a sentence for each mistake, before any site is asked."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from aggregator.strategies import REFUSED, STRATEGIES, VERSIONS, check_strategy, flower_call, flower_version, weighing_loss
from histofed.base.errors import BadData
from histofed.base.experiment import Experiment, parse_experiment

VERSION = "1.41.0"


def experiment(aggregation: str, quorum: int = 7) -> Experiment:
    return parse_experiment(
        f'name = "demo"\nrecipe = "mean"\nrounds = 3\n[sampling]\nminimum = {quorum}\n[round]\nquorum = {quorum}\n'
        f"[aggregation]\n{aggregation}\n"
    )


def check(aggregation: str, quorum: int = 7, installed: str | None = VERSION) -> None:
    check_strategy(experiment(aggregation, quorum).file, installed)


def test_our_own_needs_no_flower() -> None:
    check('strategy = "fedavg"', installed=None)


@pytest.mark.parametrize("name", sorted({*STRATEGIES} - {"QFedAvg"}))
def test_every_strategy_may_be_named(name: str) -> None:
    check(f'strategy = "flower:{name}"')


def test_options_are_numbers_in_their_ranges() -> None:
    check('strategy = "flower:FedAdam"\noptions = { eta = 0.01, beta_1 = 0, beta_2 = 0.999, tau = 1 }')
    check('strategy = "flower:QFedAvg"\noptions = { client_learning_rate = 0.1, q = 0.5, train_loss_key = "generator" }')
    check('strategy = "flower:MultiKrum"\noptions = { num_malicious_nodes = 1, num_nodes_to_select = 2 }')


@pytest.mark.parametrize(
    ("aggregation", "words"),
    [
        ('strategy = "flower:FedAdm"', r"no strategy 'FedAdm' that runs here \(did you mean flower:FedAdam\?\)"),
        ('strategy = "flower:"', "no strategy '' that runs here; there are Bulyan, FedAdagrad"),
        ('strategy = "flower:os.system"', "no strategy 'os.system' that runs here"),
        ('strategy = "flower:FedProx"', "flower:FedProx does not run here: its proximal term belongs into the loss"),
        ('strategy = "flower:SecAggPlusWorkflow"', "its masks hang on 28 bits"),
        ('strategy = "flower:DifferentialPrivacyServerSideFixedClipping"', "leaves tensors without dimensions unclipped"),
        ('strategy = "flower:FedAdam"\noptions = { betta_1 = 0.9 }', r"options\.betta_1 is not .* did you mean beta_1\?"),
        ('strategy = "flower:FedAdam"\noptions = { x = 0.9 }', "it has eta, tau, beta_1, beta_2"),
        ('strategy = "flower:FedMedian"\noptions = { eta = 1 }', "not an option of flower:FedMedian: it has none"),
        ('strategy = "flower:FedAdam"\noptions = { eta = 0 }', r"options\.eta must be above 0; it is 0"),
        ('strategy = "flower:FedAdam"\noptions = { eta = nan }', "must be finite"),
        ('strategy = "flower:FedAdam"\noptions = { eta = inf }', "must be finite"),
        (f'strategy = "flower:FedAdam"\noptions = {{ eta = {"9" * 400} }}', "must be finite and below 1e"),
        ('strategy = "flower:FedAdam"\noptions = { eta = "0.1" }', "must be a number; it is '0.1'"),
        ('strategy = "flower:FedAdam"\noptions = { eta = true }', "must be a number"),
        ('strategy = "flower:FedAdam"\noptions = { eta = { a = 1 } }', "must be a number"),
        ('strategy = "flower:FedAdam"\noptions = { beta_1 = 1 }', "at least 0 and below 1; it is 1"),
        ('strategy = "flower:FedTrimmedAvg"\noptions = { beta = 0.5 }', "at least 0 and below 0.5"),
        ('strategy = "flower:Krum"\noptions = { num_malicious_nodes = 1.0 }', "must be a whole number"),
        ('strategy = "flower:QFedAvg"', r"needs a value for aggregation\.options\.client_learning_rate"),
        ('strategy = "flower:QFedAvg"\noptions = { client_learning_rate = 1, train_loss_key = 3 }', "must be a text"),
        ('strategy = "flower:QFedAvg"\noptions = { client_learning_rate = 1 }', r"needs a value for .*\.train_loss_key"),
        (
            'strategy = "flower:QFedAvg"\noptions = { client_learning_rate = 1, train_loss_key = "a loss" }',
            "must be the name of a metric that every site reports; it is a loss",
        ),
        ('strategy = "flower:FedAdam"\noptions = { min_train_nodes = 5 }', r"who takes part is said in \[sampling\]"),
        ('strategy = "flower:FedAdam"\noptions = { weighted_by_key = "a" }', "said in aggregation.weights"),
        ('strategy = "flower:FedAdam"\noptions = { eta_l = 0.1 }', "the sites' learning rate"),
        ('strategy = "flower:Bulyan"\noptions = { selection_rule = "a" }', "an experiment is data"),
    ],
)
def test_a_mistake_is_a_sentence(aggregation: str, words: str) -> None:
    with pytest.raises(BadData, match=words):
        check(aggregation)


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("Krum", "num_malicious_nodes = 2", 7),
        ("MultiKrum", "num_malicious_nodes = 1, num_nodes_to_select = 3", 6),
        ("Bulyan", "num_malicious_nodes = 1", 7),
    ],
)
def test_a_quorum_below_what_the_strategy_vouches_for_is_refused(name: str, options: str, least: int) -> None:
    text = f'strategy = "flower:{name}"\noptions = {{ {options} }}'
    check(text, quorum=least)
    with pytest.raises(BadData, match=f"needs {least} updates .* raise round.quorum from {least - 1} to {least}"):
        check(text, quorum=least - 1)


def test_without_flower_the_sentence_says_what_to_install() -> None:
    with pytest.raises(BadData, match=r"install histofed\[flower\] there, or say strategy = \"fedavg\""):
        check('strategy = "flower:FedAdam"', installed=None)


@pytest.mark.parametrize("version", ["1.29.0", "1.43.0", "2.0.0", "unknown"])
def test_another_flower_is_refused(version: str) -> None:
    with pytest.raises(BadData, match=rf"cannot run on Flower {version}, .* works with 1\.30 up to, not including, 1\.43"):
        check('strategy = "flower:FedAdam"', installed=version)


def test_what_every_update_has_to_report() -> None:
    options = 'options = { client_learning_rate = 1, train_loss_key = "generator_loss" }'
    assert weighing_loss(experiment(f'strategy = "flower:QFedAvg"\n{options}').file.aggregation) == "generator_loss"
    assert weighing_loss(experiment('strategy = "flower:FedAdam"').file.aggregation) is None
    assert weighing_loss(experiment('strategy = "fedavg"').file.aggregation) is None


def test_what_is_packaged_is_what_is_checked() -> None:
    extras = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (first, beyond) = (".".join(map(str, version)) for version in VERSIONS)
    assert extras["flower"] == [f"flwr>={first},<{beyond}"]
    assert flower_version() is not None


def test_no_reason_is_empty() -> None:
    assert all(REFUSED.values())


def test_the_call_depends_on_the_experiment_and_the_round(tmp_path: Path) -> None:
    adam = experiment('strategy = "flower:FedAdam"\noptions = { eta = 0.01 }')
    call = flower_call(adam, 1, {"north": {"loss": 1.0}}, None, tmp_path)
    assert call is not None
    assert (call.strategy, call.options, call.metrics) == ("FedAdam", {"eta": 0.01}, {"north": {"loss": 1.0}})
    other = flower_call(adam, 2, {}, None, tmp_path)
    assert other is not None and other.seed != call.seed
    assert flower_call(experiment('strategy = "fedavg"'), 1, {}, None, tmp_path) is None
