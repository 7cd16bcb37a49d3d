"""The meter against the counts of `paper.md` §5, and the document against the presets. Some seconds each: without
contents, but every operation of real training steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from histofed.base.ids import Json
from histofed.recipes import presets
from histofed.recipes.gan.config import GanConfig
from histofed.recipes.sections import parse_section
from scripts.costlib.cost import Cost, cost, networks, sent
from scripts.costlib.document import federation_row, step_row
from scripts.costlib.meter import metered

DOCUMENT = Path(__file__).parents[3] / "docs/presets.md"


def config(name: str, **changed: Json) -> GanConfig:
    """Of a preset, with batches of two: counts per tile do not depend on it, and it is quicker."""
    return parse_section(GanConfig, {**presets.load(name).recipe_table(1000), "batch": 2, **changed})


FORWARD = {"paper/acgan-vit-b-16": 35.13, "paper/acgan-cnn": 0.098}
"""GFLOP of a discriminator, `paper.md` §5; so are the next two."""
STEPS = {
    "paper/acgan-vit-b-16": (85_800_963, 105.86, 72.40),
    "paper/acgan-swin-t": (27_521_661, 26.91, 18.24),
    "paper/acgan-resnet50": (23_514_179, 24.29, 16.35),
    "paper/acgan-resnet18": (11_178_051, 10.65, 7.25),
    "paper/acgan-cnn": (173_155, 0.282, 0.195),
}
"""Parameters; forward with backward to the weights; forward with backward to the images."""
SAVED = (1 - 16 / 36) * 2 * (128 * 128 * 9 * 112**2 + 128 * 64 * 9 * 224**2) / 1e9
"""GFLOP of a forward pass: two convolutions behind a doubling take 16 products per small pixel instead of 36."""
GENERATOR = 40_772_227, 11.35 - SAVED, 33.98 - 3 * SAVED
"""Parameters; forward; forward with backward to the weights."""


@pytest.mark.parametrize("name", FORWARD)
def test_a_forward_pass_is_counted_as_it_was_before(name: str) -> None:
    with torch.device("meta"):
        generator, network = networks(config(name))
    assert sum(one.numel() for one in network.parameters()) == STEPS[name][0]
    assert sum(one.numel() for one in generator.parameters()) == GENERATOR[0]
    with metered() as meter, torch.no_grad():
        network.to_empty(device="cpu")
        network(torch.zeros(2, 3, 224, 224))
    assert meter.flops / 2e9 == pytest.approx(FORWARD[name], rel=0.006)


@pytest.mark.parametrize("name", STEPS)
def test_the_document_agrees_with_what_was_counted_before(name: str) -> None:
    parameters, to_weights, to_images = STEPS[name]
    row = [cell.strip().replace(",", "") for cell in _rows()[name].split("|")]
    assert [int(row[2]), int(row[3])] == [GENERATOR[0], parameters]
    # D looks at reals and at fakes; G draws and is judged, and D's weights get no gradient
    assert float(row[5]) == pytest.approx(2 * to_weights, rel=0.001, abs=0.006)
    assert float(row[6]) == pytest.approx(GENERATOR[2] + to_images, rel=0.002)


@pytest.fixture(scope="module")
def of_acgan() -> Cost:
    """Of `paper/acgan-cnn` at its own batch."""
    return cost(parse_section(GanConfig, presets.load("paper/acgan-cnn").recipe_table(1000)))


def test_a_step_is_counted_as_it_is_played(of_acgan: Cost) -> None:
    found = of_acgan
    assert found.discriminator_step / 1e9 == pytest.approx(2 * 0.282, rel=0.005)
    assert found.generator_step / 1e9 == pytest.approx(GENERATOR[2] + 0.195, rel=0.002)
    assert found.step == found.discriminator_step + found.generator_step
    # weights, gradients and two moments; 32 tiles of which the generator's activations are kept for backward: 87.3 MB each
    # (`paper.md` §5), without the two doubled copies that are never made
    state = 16 * (found.generator + found.discriminator)
    doubled = 4 * 128 * (112**2 + 224**2)
    assert state + 32 * (87.3e6 - doubled) < found.peak_bytes < state + 32 * 87.3e6


def test_a_critic_is_counted_with_its_penalty_and_its_turns() -> None:
    found = cost(config("paper/wgan-gp-cnn"))
    # about five forward passes more than ACGAN's step, and a generator that moves in every fifth step
    assert 4 * 0.098 < found.discriminator_step / 1e9 - 2 * 0.282 < 8 * 0.098
    assert found.step == pytest.approx(
        found.discriminator_step + (found.generator_step + 4 * GENERATOR[1] * 1e9) / 5, rel=0.001
    )


def test_a_lazy_penalty_is_spread() -> None:
    def step(r1: float, every: int) -> float:
        objective: dict[str, Json] = {"name": "hinge", "r1": r1, "penalty_every": every}
        network: dict[str, Json] = {"name": "cnn", "norm": "none", "dropout": 0.0}
        return cost(config("paper/acgan-cnn", image_size=32, objective=objective, discriminator=network)).discriminator_step

    plain = step(0.0, 1)
    assert step(1.0, 1) - plain == pytest.approx(16 * (step(1.0, 16) - plain))


def test_what_is_alive_is_what_can_be_reached() -> None:
    with metered() as meter:
        layer = nn.Linear(1000, 1000, bias=False)
        weights = meter.live
        out = layer(torch.zeros(10, 1000))
        held = meter.live
        del out
        after = meter.live
    assert weights == 4_000_000
    assert held == weights + 2 * 40_000
    assert after < held
    assert meter.peak >= held


def test_what_is_sent_is_what_is_shared() -> None:
    local, shared = config("paper/acgan-cnn", share="generator"), config("paper/acgan-cnn")
    with torch.device("meta"):
        players = networks(local)
    # parameters, and the means and variances of batch norm: 128 + 128 + 64 channels here, 32 + 64 + 128 there
    assert sent(local, *players) == 4 * (GENERATOR[0] + 2 * 320)
    assert sent(shared, *players) == 4 * (GENERATOR[0] + 2 * 320 + 173_155 + 2 * 224)


def _rows() -> dict[str, str]:
    """The first table's lines by preset."""
    first, _, _ = DOCUMENT.read_text(encoding="utf-8").partition("## A federation")
    return {line.split("`")[1]: line for line in first.splitlines() if line.startswith("| `")}


def test_the_document_is_current(of_acgan: Cost) -> None:
    """A whole row as the script counts it (all take minutes: `preset_costs.py --check`), and a row for every preset."""
    preset = presets.load("paper/acgan-cnn")
    assert _rows()[preset.name] + "\n" == step_row(preset, of_acgan)
    assert tuple(_rows()) == presets.names()
    federations = DOCUMENT.read_text(encoding="utf-8").partition("## A federation")[2]
    assert all(f"`{name}`" in federations for name in presets.names() if presets.load(name).federation)


def test_the_row_of_a_federation() -> None:
    preset = presets.load("paper/federated-10-swin-t")
    found = Cost(1, 1, 500_000_000, 80e9, 20e9, 100e9, 1)
    assert federation_row(preset, found) == "| `paper/federated-10-swin-t` | 40 | 2 of 10 | 61 | 500.0 | 80.0 | 0.20 |\n"
