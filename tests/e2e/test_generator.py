"""The paper's generator in a federation, as small as it gets: real tiles where HISTOFED_TILES names them.

Of four hospitals one has clean tiles, one has files among them that are no tiles, one has a single patient, and one has no
tile of one class. The first two train; then they do it again in a federation that shares nothing with the first but the
identities, the tiles and the experiment, and one of them is stopped in the middle. Both federations make the same bytes.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from histofed.base.experiment import parse_experiment
from histofed.recipes.registry import recipe
from histofed.weights import read
from tests.e2e.conftest import GENERATOR_TOML, NewFederation
from tests.support.federation import Federation
from tests.support.hospitals import REFUSED, SITES
from tests.support.sheets import rows_of

ABLE = ("east", "north")
UNWILLING = 'experiments = ["other-*"]\n'


@pytest.fixture(scope="module")
def released(healthy: Federation, generated: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released generator, as the operator pulls it."""
    file = tmp_path_factory.mktemp("pulled") / "generator.safetensors"
    assert healthy.cli("models", "pull", "acgan", "--out", str(file))["verified"]
    return file


def test_a_round_goes_on_without_hospitals_whose_tiles_do_not_do(generated: dict[str, Any]) -> None:
    assert (generated["state"], generated["admitted"]) == ("committed", list(ABLE))
    assert np.isfinite(list(generated["metrics"].values())).all()
    reasons = {refusal["site"]: refusal["reason"] for refusal in generated["refused"]}
    assert reasons["west"] == "A class has too few patients for this site's own rule. The site's log says more."
    assert "has no usable tile under the data root" in reasons["south"]


def test_files_that_are_no_tiles_are_counted_with_their_reason(healthy: Federation, generated: dict[str, Any]) -> None:
    for reason in REFUSED:
        assert healthy.daemons["east"].logged(f"1 file refused: {reason}"), reason


def test_no_patient_and_no_place_leaves_a_hospital(healthy: Federation, generated: dict[str, Any]) -> None:
    for daemon in ("aggregator", *SITES):
        assert "TCGA-" not in (healthy.folder / f"{daemon}.log").read_text()
    state = b"".join(file.read_bytes() for file in healthy.state.rglob("*") if file.is_file())
    assert b"TCGA-" not in state
    assert str(healthy.site("west")).encode() not in state


def test_the_generator_is_released_without_the_network_that_saw_patients(released: Path) -> None:
    tensors = read(released)
    assert tensors
    assert all(name.startswith("ema.") for name in tensors)
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())


def test_the_sample_sheet_has_a_row_per_class(released: Path, tmp_path: Path) -> None:
    config = parse_experiment(GENERATOR_TOML).file.recipe_config
    target = tmp_path / "sheet.png"
    assert recipe("gan").workshop().sample_sheet(config, released, 1, target)
    with Image.open(target) as sheet:
        assert rows_of(sheet) == 2


def test_the_same_experiment_makes_the_same_bytes_also_when_an_agent_is_stopped(
    healthy: Federation, generated: dict[str, Any], new_federation: NewFederation, hospital_tiles: dict[str, Path]
) -> None:
    other = new_federation()
    other.start_aggregator()
    for site in SITES:
        other.write_site(site, data=hospital_tiles[site], consent=None if site in ABLE else UNWILLING)
    other.start_agents(*SITES)
    other.submit(GENERATOR_TOML)
    other.daemons["north"].wait_logged("task acgan/1/train/north is accepted")
    assert other.daemons["north"].stop(signal.SIGTERM) == 0
    other.start_agent("north")
    assert other.wait_until_ended("acgan")["experiment"]["state"] == "finished"
    assert other.parts("acgan") == healthy.parts("acgan")
