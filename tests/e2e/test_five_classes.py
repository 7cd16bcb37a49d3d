"""More than the paper's two classes, the whole way: drawn tiles → check → split → cached → rounds → released → looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from histofed.base.experiment import parse_experiment
from histofed.recipes.registry import recipe
from histofed.tiles.draw import ARCHITECTURES, draw_tiles
from histofed.weights import read
from tests.e2e.conftest import NewFederation
from tests.support.federation import Federation, gan_experiment
from tests.support.sheets import rows_of

CLASSES = tuple(ARCHITECTURES)
HOSPITALS = {"north": "site-1", "east": "site-2"}
"""Site → its part of the split."""
ROUNDS = 2
TOML = gan_experiment("five", [*HOSPITALS], rounds=ROUNDS, classes=CLASSES, discriminator="vit-mini")


@pytest.fixture(scope="module")
def federation(new_federation: NewFederation, tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Two hospitals with a part each of one set of tiles; the experiment has ended."""
    folder = tmp_path_factory.mktemp("five")
    draw_tiles(folder / "tiles", patients_per_class=5, tiles_per_patient=2, size=32, seed=4, classes=CLASSES)
    federation = new_federation()
    assert _checked(federation, folder / "tiles") == dict.fromkeys(CLASSES, (10, 5))
    parts = _split(federation, folder / "tiles", folder / "split")
    assert list(parts) == ["site-1", "site-2", "VALIDATION"]
    assert all(part["tiles"].keys() == set(CLASSES) and all(part["tiles"].values()) for part in parts.values())
    federation.start_aggregator()
    for site, part in HOSPITALS.items():
        federation.write_site(site, data=folder / "split" / part)
    federation.start_agents(*HOSPITALS)
    federation.submit(TOML)
    assert federation.wait_until_ended("five")["experiment"]["state"] == "finished"
    return federation


@pytest.fixture(scope="module")
def released(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newest generator, as the operator pulls it."""
    file = tmp_path_factory.mktemp("pulled") / "generator.safetensors"
    assert federation.cli("models", "pull", "five", "--out", str(file))["verified"]
    return file


def test_every_round_holds_both_hospitals_whole_training_parts(federation: Federation) -> None:
    rounds = federation.cli("rounds", "list", "five")["rounds"]
    assert [(one["state"], one["admitted"]) for one in rounds] == [("committed", sorted(HOSPITALS))] * ROUNDS
    assert all(np.isfinite(list(one["metrics"].values())).all() for one in rounds)


def test_each_hospital_decoded_its_tiles_once(federation: Federation) -> None:
    for site in HOSPITALS:
        (decoded,) = (federation.site(site) / "state" / "tile-cache").glob("*.tiles")
        assert decoded.stat().st_size > 20 * 3 * 32 * 32, "two patients of each of five classes, two tiles each"


def test_the_generator_knows_five_classes(released: Path) -> None:
    assert any(5 in tensor.shape for tensor in read(released).values())


def test_the_sample_sheet_has_five_rows(released: Path, tmp_path: Path) -> None:
    config = parse_experiment(TOML).file.recipe_config
    assert recipe("gan").workshop().sample_sheet(config, released, 1, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert rows_of(sheet) == 5


def _checked(federation: Federation, tiles: Path) -> dict[str, tuple[int, int]]:
    """Tiles and patients by class, as the hospital's data manager sees them."""
    found = federation.cli("data", "check", str(tiles), "--classes", ",".join(CLASSES))
    assert found["problems"] == []
    return {one["class"]: (one["tiles"], one["patients"]) for one in found["classes"]}


def _split(federation: Federation, tiles: Path, out: Path) -> dict[str, dict[str, Any]]:
    by = ("--by", "iid-patient", "--sites", str(len(HOSPITALS)), "--holdout", "0.2", "--classes", ",".join(CLASSES))
    return {part["folder"]: part for part in federation.cli("data", "split", str(tiles), str(out), *by)["parts"]}
