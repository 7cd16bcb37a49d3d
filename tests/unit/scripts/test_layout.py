from __future__ import annotations

import socket
import tomllib
from pathlib import Path

import pytest

from agent.config import load_config
from agent.consent import decide, load_policy
from aggregator.config import AggregatorConfig
from histofed.base.config import load
from histofed.base.experiment import parse_experiment
from histofed.recipes.registry import recipe
from scripts.demolib.daemons import DemoError
from scripts.demolib.layout import SITES, Layout, Ports, write_aggregator, write_experiment, write_site

DEMO = Path(__file__).parents[3] / "examples/demo.toml"


def test_the_daemons_accept_their_files(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_aggregator(layout, Ports(1, 2, 3, 4))
    write_site(layout, "north", largest_size=256, steps=2000)

    aggregator = load(AggregatorConfig, name="aggregator", path=layout.aggregator_config, flags={}, environ={}).config
    agent = load_config(layout.agent_config("north"), {}, {}).config

    assert aggregator.listen.grpc == "127.0.0.1:1"
    assert aggregator.state_dir == layout.aggregator / "state"
    assert agent.data.root == layout.tiles / "north"
    assert agent.consent.is_file()


@pytest.mark.parametrize(("rounds", "size"), [(None, None), (2, 32), (10, 256)])
def test_every_hospital_consents_to_the_demos_experiment(tmp_path: Path, rounds: int | None, size: int | None) -> None:
    layout = Layout(tmp_path)
    write_site(layout, "north", largest_size=256, steps=2000)

    write_experiment(DEMO.read_text(encoding="utf-8"), layout, name="demo-2", rounds=rounds, size=size)

    experiment = parse_experiment(layout.experiment.read_text(encoding="utf-8"))
    assert experiment.name == "demo-2"
    assert rounds is None or experiment.file.rounds == rounds
    config = recipe(experiment.file.recipe).demands(experiment.file.recipe_config)
    assert size is None or config.image_size == size
    decision = decide(load_policy(layout.site("north") / "consent.toml"), experiment, config)
    assert decision.allowed, decision.reason


def test_the_demo_meets_its_promise_of_four_sites_and_three_rounds() -> None:
    file = parse_experiment(DEMO.read_text(encoding="utf-8")).file

    assert len(SITES) == 4
    assert file.rounds >= 3
    assert file.sampling.minimum in (2, 3)
    assert len(SITES) * file.sampling.fraction <= 3


def test_a_file_without_the_line_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="0 lines that set rounds"):
        write_experiment('name = "x"\n', Layout(tmp_path), name="y", rounds=3, size=None)


def test_paths_with_quotes_are_written_right(tmp_path: Path) -> None:
    layout = Layout(tmp_path / 'a "b" \\c')
    write_aggregator(layout, Ports(1, 2, 3, 4))

    written = tomllib.loads(layout.aggregator_config.read_text(encoding="utf-8"))
    assert written["state_dir"] == str(layout.aggregator / "state")


def test_ports_are_free_and_differ() -> None:
    ports = Ports.find()

    numbers = {ports.grpc, ports.enrolment, ports.health, ports.metrics}
    assert len(numbers) == 4
    for number in numbers:
        with socket.socket() as free:
            free.bind(("127.0.0.1", number))
