"""An experiment whose first weights are brought: what an aggregator without torch begins with."""

from __future__ import annotations

import builtins
import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator import setup
from aggregator.config import AggregatorConfig
from aggregator.database import Database
from aggregator.first import check_tensors
from aggregator.jobs import InitialiseJob, InitialiseResult, decode_job, encode_job
from aggregator.store import Store
from aggregator.worker import perform
from histofed import weights
from histofed.base.errors import AlreadyThere, BadData, Stale
from histofed.base.hashing import sha256_file
from histofed.base.ids import Digest, ExperimentId, Json
from histofed.base.seeds import seed
from histofed.recipes.gan.recipe import GanRecipe
from tests.support.centre import Centre
from tests.support.commands import run_here

MEAN = {"dimension": 3, "steps": 1}
EXPERIMENT = 'name = "brought"\nrecipe = "mean"\nrounds = 1\n[config]\ndimension = 3\nsteps = 1\n'


@pytest.fixture
def config(tmp_path: Path) -> AggregatorConfig:
    return AggregatorConfig(state_dir=tmp_path / "state")


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """What `histofed experiments draw` makes."""
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    done = run_here(
        "histofed.cli.main", "experiments", "draw", str(tmp_path / "experiment.toml"), "--out", str(tmp_path / "first")
    )
    assert done.code == 0, done.error
    return tmp_path / "first"


def job(folder: Path, recipe: str = "mean", given: Path | None = None) -> InitialiseJob:
    return InitialiseJob(
        recipe,
        MEAN,
        seed("initialise", "brought"),
        folder / f"{given is None}-shared",
        folder / f"{given is None}-server",
        given,
    )


def test_what_is_brought_is_what_would_have_been_drawn(tmp_path: Path, drawn: Path, config: AggregatorConfig) -> None:
    digest = setup.give_first(config, "brought", drawn)
    given = setup.first_weights(config.state_dir) / "brought.safetensors"
    brought = perform(decode_job(encode_job(job(tmp_path, given=given))))
    assert isinstance(brought, InitialiseResult)
    assert brought.shared.sha256 == digest == sha256_file(drawn)
    assert perform(job(tmp_path)) == brought


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    weights.save(tmp_path / "bad", {"mean.value": np.array([np.nan, 1, 2], dtype=np.float32)})
    with pytest.raises(BadData, match=r"not finite in tensor 'mean\.value'"):
        perform(job(tmp_path, given=tmp_path / "bad"))


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"ema.value": 3}, "'ema.value' is none that its sites share"),
        ({"mean.value": 3, "mean.other": 3}, "'mean.other' is none that its sites share"),
        ({"mean.value": 4}, r"'mean.value' is F32\[4\] where the model has F32\[3\]"),
    ],
)
def test_what_is_of_other_work_is_refused_before_a_site_trains(tmp_path: Path, tensors: dict[str, int], why: str) -> None:
    given = tmp_path / "other"
    weights.save(given, {name: np.ones(size, dtype=np.float32) for name, size in tensors.items()})
    with pytest.raises(BadData, match=f"are not this experiment's .tensor {why}.: give what .histofed experiments draw"):
        perform(job(tmp_path, given=given))
    assert not list(tmp_path.glob("*.drawn"))


NETWORKS = ("generator.a", "discriminator.b")


@pytest.mark.parametrize("torch", [True, False])
@pytest.mark.parametrize(
    ("share", "names", "fit"),
    [
        ("generator", ("generator.a",), True),
        ("generator", NETWORKS, False),
        ("generator+discriminator", NETWORKS, True),
        ("generator+discriminator", ("generator.a",), False),
        ("generator", ("ema.a",), False),
    ],
)
def test_without_networks_the_names_tell(
    tmp_path: Path, share: str, names: tuple[str, ...], fit: bool, torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No torch, or no trunk's file: what can be known is whether sites share such tensors at all."""

    class NoFile:
        def initialise(self, *_: object) -> None:
            raise BadData("the trunk's file is not here")

    def workshop(_: GanRecipe) -> NoFile:
        if not torch:
            raise ModuleNotFoundError("No module named 'torch'")
        return NoFile()

    monkeypatch.setattr(GanRecipe, "workshop", workshop)
    given = tmp_path / "given"
    weights.save(given, {name: np.ones(3, dtype=np.float32) for name in names})
    config: dict[str, Json] = {"share": share, "steps": 1, "image_size": 32, "discriminator": {"name": "cnn"}}
    wrong = contextlib.nullcontext() if fit else pytest.raises(BadData, match="are not this experiment's")
    with wrong:
        check_tensors(GanRecipe(), config, given, 1, tmp_path / "scratch")


def test_given_once(tmp_path: Path, drawn: Path, config: AggregatorConfig) -> None:
    setup.give_first(config, "brought", drawn)
    with pytest.raises(AlreadyThere, match="to give others"):
        setup.give_first(config, "brought", drawn)


def test_none_are_given_to_an_experiment_that_would_not_read_them(centre: Centre, drawn: Path) -> None:
    centre.cli("init")
    centre.populate()  # demo has a model
    database = Database(centre.state / "state.db")
    store = Store(database, centre.clock)
    for name, state in {"draft": "draft", "failed": "failed", "cancelled": "cancelled"}.items():
        store.add_experiment(ExperimentId(name), "", Digest("1" * 64), "admin")
        store.set_experiment(ExperimentId(name), state)
    whys = {"demo": "has begun", "draft": "is submitted", "failed": "is failed", "cancelled": "is cancelled"}
    for name, why in whys.items():
        refused = centre.cli("first", name, str(drawn), code=Stale.exit_code)
        assert f"experiment {name} {why}" in refused
    database.close()
    assert f"experiment to-come will begin with {sha256_file(drawn)}" in centre.cli("first", "to-come", str(drawn))
    assert [path.stem for path in setup.first_weights(centre.state).iterdir()] == ["to-come"]


def test_an_experiment_that_is_submitted_while_the_weights_are_copied_may_begin_with_or_without_them(
    centre: Centre, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    centre.cli("init")
    database = Database(centre.state / "state.db")
    real = shutil.copyfileobj

    def meanwhile(*arguments: Any) -> None:
        Store(database, centre.clock).add_experiment(ExperimentId("brought"), "", Digest("1" * 64), "admin")
        real(*arguments)

    monkeypatch.setattr(shutil, "copyfileobj", meanwhile)
    with pytest.raises(Stale, match="experiment brought was submitted at this moment: `histofed models list` tells which"):
        setup.give_first(centre.config, "brought", drawn)
    database.close()
    assert [path.stem for path in setup.first_weights(centre.state).iterdir()] == ["brought"], "the daemon may be at them"


@pytest.mark.parametrize("name", ["../up", "a/b", ""])
def test_a_name_that_is_none(name: str, drawn: Path, config: AggregatorConfig) -> None:
    with pytest.raises(BadData):
        setup.give_first(config, name, drawn)


def test_a_file_that_is_none(tmp_path: Path, config: AggregatorConfig) -> None:
    with pytest.raises(BadData, match="cannot be read: No such file"):
        setup.give_first(config, "brought", tmp_path / "absent")
    (tmp_path / "text").write_text("not tensors at all")
    with pytest.raises(BadData, match=f"{tmp_path}/text gives no first weights: not a safetensors file"):
        setup.give_first(config, "brought", tmp_path / "text")
    assert list(setup.first_weights(config.state_dir).iterdir()) == []


def test_without_torch_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("histofed.recipes.gan.workshop"):
            raise ModuleNotFoundError("No module named 'torch'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadData, match=r"No module named 'torch'.*histofed experiments draw.*histofed-aggregator first"):
        perform(job(tmp_path, recipe="gan"))


def test_drawing_over_a_file_is_refused(tmp_path: Path, drawn: Path) -> None:
    done = run_here("histofed.cli.main", "experiments", "draw", str(tmp_path / "experiment.toml"), "--out", str(drawn))
    assert done.code == AlreadyThere.exit_code
    assert "name a new file" in done.error
