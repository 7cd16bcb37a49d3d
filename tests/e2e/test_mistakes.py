"""What people get wrong in files: a sentence for whoever wrote them, and a round that still ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from histofed import weights
from tests.support.commands import run_here
from tests.support.federation import CONSENT, Federation, free_ports, gan_experiment, mean_experiment
from tests.support.hospitals import SITES


def test_an_unknown_key_in_agent_toml(healthy: Federation, tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('state_dir = "x"\nminimum_patient = 3\n')
    for command in ("check", "run", "status"):
        done = run_here("agent.cli", command, "--config", str(file))
        assert done.code == 78
        assert f"{file}:2" in done.error
        assert "minimum_patients" in done.error


def test_an_unknown_key_in_aggregator_toml(tmp_path: Path) -> None:
    file = tmp_path / "aggregator.toml"
    file.write_text('federation = "test"\n[listen]\ngrcp = "127.0.0.1:1"\n')
    done = run_here("aggregator.cli", "check", "--config", str(file))
    assert done.code == 78
    assert f"{file}:3" in done.error
    assert "'grpc'" in done.error or "listen.grpc" in done.error


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ("ca_file", "ca_file.pem (named in [telemetry]) cannot be read: No such file or directory"),
        ("certificate_file", "telemetry.certificate_file and telemetry.key_file go together: set both or neither"),
    ],
)
def test_a_wrong_file_in_the_aggregators_telemetry(tmp_path: Path, named: str, sentence: str) -> None:
    file = tmp_path / "aggregator.toml"
    file.write_text(
        f'state_dir = "{tmp_path / "state"}"\n[telemetry]\notlp_endpoint = "https://127.0.0.1:4317"\n'
        f'{named} = "{tmp_path / named}.pem"\n'
    )
    assert run_here("aggregator.cli", "init", "--config", str(file)).code == 0
    # a process of its own: a daemon takes signals and logs for itself
    command = [sys.executable, "-m", "aggregator", "run", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 78
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_key_in_operator_toml(healthy: Federation, tmp_path: Path) -> None:
    file = tmp_path / "operator.toml"
    file.write_text(healthy.operator_config.read_text() + 'certficate = "x"\n')
    done = run_here("histofed.cli.main", "--config", str(file), "status")
    assert done.code == 78
    assert str(file) in done.error
    assert "certificate" in done.error


def test_status_without_an_aggregator_is_one_sentence(healthy: Federation, tmp_path: Path) -> None:
    folder = tmp_path / "operator"
    folder.mkdir()
    for path in healthy.operator.iterdir():
        (folder / path.name).touch(mode=0o600)
        (folder / path.name).write_bytes(path.read_bytes())
    address = f"localhost:{free_ports(1)[0]}"
    config = folder / "operator.toml"
    config.write_text(config.read_text().replace(healthy.address, address))
    done = run_here("histofed.cli.main", "--config", str(config), "status")
    assert (done.code, done.out) == (69, "")
    assert done.error == f"histofed: nobody listens at {address}: the aggregator may be down, or the port is wrong\n"


EXPERIMENTS = {
    "an unknown key": ("[sampling]\nfracton = 0.5", "sampling.fracton: no such key"),
    "a value out of range": ("[sampling]\nfraction = 1.5", "sampling.fraction"),
    "a quorum that nobody reaches": ("[round]\nquorum = 5", "round.quorum = 5 is above sampling.minimum"),
    "fewer sites than it needs": ('[sampling]\nsites = ["east"]', "sampling.minimum = 2 is above the number of sites"),
}


@pytest.mark.parametrize("kind", EXPERIMENTS)
def test_an_experiment_that_cannot_be(healthy: Federation, tmp_path: Path, kind: str) -> None:
    extra, words = EXPERIMENTS[kind]
    refused(healthy, tmp_path, mean_experiment("impossible", extra=extra), words)


def test_an_experiment_with_an_unknown_recipe(healthy: Federation, tmp_path: Path) -> None:
    toml = mean_experiment("impossible").replace('"mean"', '"gna"')
    refused(healthy, tmp_path, toml, "gna", "gan")


def test_an_experiment_whose_recipe_does_not_know_a_key(healthy: Federation, tmp_path: Path) -> None:
    refused(healthy, tmp_path, mean_experiment("impossible", config="dimension = 10\nstep = 5"), "step")


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ('"flower:FedAdm"', "did you mean flower:FedAdam?"),
        ('"flower:FedAdam"\noptions = { etta = 1 }', "did you mean eta?"),
        ('"flower:Krum"', "raise round.quorum from 1 to 3"),
    ],
)
def test_a_strategy_that_cannot_run(healthy: Federation, tmp_path: Path, strategy: str, words: str) -> None:
    refused(healthy, tmp_path, mean_experiment("impossible", extra=f"[aggregation]\nstrategy = {strategy}"), words)


def test_first_weights_of_another_model_cost_no_name(healthy: Federation, tmp_path: Path) -> None:
    """The part that `models pull` gives is not the one that sites train from."""
    given = healthy.state / "first/impossible.safetensors"
    given.parent.mkdir(exist_ok=True)
    weights.save(given, {"ema.value": np.zeros(1000, np.float32)})
    words = "'ema.value' is none that its sites share"
    refused(healthy, tmp_path, mean_experiment("impossible"), words, "experiments draw", f"after {given} was removed")
    given.unlink()


def test_a_file_that_is_no_experiment(healthy: Federation, tmp_path: Path) -> None:
    refused(healthy, tmp_path, "name = ", "not TOML")
    missing = healthy.cli("experiments", "submit", str(tmp_path / "missing.toml"), code=65)
    assert "cannot read" in missing["error"]["sentence"]


def test_a_name_that_nothing_has(healthy: Federation) -> None:
    for command in (("models", "list"), ("rounds", "list"), ("experiments", "show")):
        assert "dmo" in healthy.cli(*command, "dmo", code=65)["error"]["sentence"]


def test_a_name_that_is_taken_by_another_file(healthy: Federation, tmp_path: Path) -> None:
    toml = mean_experiment("taken", 1, extra='[sampling]\nminimum = 1\nsites = ["nowhere"]')
    healthy.submit(toml)
    healthy.submit(toml)
    refused(healthy, tmp_path, f"{toml}# another file\n", "taken")


def refused(federation: Federation, folder: Path, toml: str, *words: str) -> None:
    """The operator's command ends with 65 and a sentence with these words; nothing of the experiment is left."""
    file = folder / "experiment.toml"
    file.write_text(toml)
    error = federation.cli("experiments", "submit", str(file), code=65)["error"]
    assert error["code"] == 65
    for word in words:
        assert word in error["sentence"]
    assert "\n" not in error["sentence"]
    assert "impossible" not in [one["name"] for one in federation.cli("experiments", "list")["experiments"]]


# --- consent ----------------------------------------------------------------------------------------------------------

REFUSALS = {
    "north": (CONSENT.replace('recipes = ["*"]', 'recipes = ["mean"]'), "the recipe 'gan' (allowed: mean)"),
    "south": (CONSENT.replace('models = ["*"]', 'models = ["generator:*"]'), "the model 'discriminator:cnn'"),
    "east": (CONSENT.replace('"16..256"', "[64, 128]"), "tiles of 32 pixels (allowed: 64, 128)"),
    "west": (CONSENT.replace("10000", "1"), "2 steps in one task (allowed: 1)"),
}
"""A consent file, and what it says against the experiment below."""


def test_each_hospital_refuses_in_its_own_words_until_it_consents(healthy: Federation) -> None:
    for site, (consent, _) in REFUSALS.items():
        healthy.write_consent(site, consent)
    try:
        healthy.submit(gan_experiment("unwanted", SITES))
        end = healthy.wait_until_seen("unwanted", lambda sight: sight["experiment"]["state"] == "paused")
    finally:
        for site in SITES:
            healthy.write_consent(site)
    assert "0 of 1 needed updates" in end["experiment"]["reason"]
    tasks = healthy.cli("rounds", "show", "unwanted", "1")["round"]["tasks"]
    for task in tasks:
        assert task["state"] == "declined"
        assert task["reason"].startswith("the consent of this site does not allow ")
        assert REFUSALS[task["site"]][1] in task["reason"]

    healthy.cli("experiments", "resume", "unwanted", "--reason", "the hospitals have changed their minds")
    end = healthy.wait_until_ended("unwanted")
    assert (end["experiment"]["state"], end["experiment"]["rounds_committed"]) == ("finished", 1)


def test_a_refusal_costs_the_others_nothing(healthy: Federation) -> None:
    healthy.write_consent("east", CONSENT.replace('experiments = ["*"]', 'experiments = ["other-*"]'))
    healthy.write_consent("west", CONSENT + "maximum_step = 3\n")
    try:
        healthy.submit(mean_experiment("unevenly", 1, extra='[sampling]\nminimum = 3\nsites = ["north", "east", "west"]'))
        healthy.wait_until_ended("unevenly")
    finally:
        healthy.write_consent("east")
        healthy.write_consent("west")
    (state,) = healthy.cli("rounds", "list", "unevenly")["rounds"]
    assert (state["state"], state["admitted"]) == ("committed", ["north"])
    reasons = {refusal["site"]: refusal["reason"] for refusal in state["refused"]}
    assert "the experiment 'unevenly' (allowed: other-*)" in reasons["east"]
    assert "consent file of this site cannot be read" in reasons["west"]
    told = healthy.daemons["west"].wait_logged("nothing is allowed until this is repaired")
    assert "maximum_step" in told and "maximum_steps" in told, "its administrator learns file, line and key"
