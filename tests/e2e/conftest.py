"""Federations of real processes for the stories in this folder.

Making identities takes longer than a round, so it is done once (`template`); every other federation begins as a copy of
its identities. `healthy` lives as long as the session: its daemons are never killed, and every test brings an experiment
of its own. Stories that kill daemons have a federation of their own, made by `new_federation`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from histofed.tiles.split import split_by_patient
from tests.support.federation import Federation, gan_experiment
from tests.support.hospitals import HOSTILE, SITES, dirty_tiles, empty_class, one_patient
from tests.support.otlp import OtlpReceiver
from tests.support.pki import TestPki
from tests.support.tiles import CLASSES, TilesRoot

NewFederation = Callable[[], Federation]
MADE: list[Federation] = []
"""By `new_federation`, for the logs of a failed story."""
GENERATOR_TOML = gan_experiment("acgan", SITES)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed story shows the ends of its daemons' logs."""
    report = yield
    if report.failed:
        for name, value in item.funcargs.items():
            for federation in MADE if name == "new_federation" else [value]:
                if isinstance(federation, Federation):
                    report.sections.append((f"logs of {name}, {federation.folder}", federation.logs()))
    return report


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A federation whose sites are enrolled and whose daemons are stopped."""
    with Federation(tmp_path_factory.mktemp("template")) as federation:
        aggregator = federation.start_aggregator()
        for site in (*SITES, HOSTILE):
            federation.enrol(site)
        assert aggregator.stop() == 0
    return federation


@pytest.fixture(scope="module")
def new_federation(template: Federation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewFederation]:
    """Makes federations with enrolled sites that nobody has started; all of them end with the module."""
    with ExitStack() as stack:

        def make() -> Federation:
            federation = Federation(tmp_path_factory.mktemp("federation"), template=template)
            for site in SITES:
                federation.write_site(site)
            MADE.append(federation)
            return stack.enter_context(federation)

        yield make
        MADE.clear()


@pytest.fixture(scope="session")
def hospital_tiles(tiles_root: TilesRoot, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each hospital has: `north` clean tiles, the others trouble of one kind each."""
    folder = tmp_path_factory.mktemp("hospitals")
    split_by_patient(tiles_root.path, CLASSES, SITES, 1, folder / "clean")
    return {
        "north": folder / "clean/north",
        "east": dirty_tiles(folder / "clean/east", folder / "east"),
        "south": empty_class(folder / "clean/south", folder / "south"),
        "west": one_patient(folder / "clean/west", folder / "west"),
    }


@pytest.fixture(scope="session")
def collector() -> Iterator[OtlpReceiver]:
    """Where `healthy` sends its traces, over mutual TLS."""
    with OtlpReceiver(TestPki()) as receiver:
        yield receiver


@pytest.fixture(scope="session")
def healthy(
    template: Federation,
    hospital_tiles: dict[str, Path],
    collector: OtlpReceiver,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Federation]:
    """Aggregator and four agents, all running, with tiles and traces."""
    folder = tmp_path_factory.mktemp("healthy")
    telemetry = collector.configuration
    with Federation(folder, aggregator_toml=telemetry(folder, "aggregator"), template=template) as federation:
        federation.start_aggregator()
        for site in SITES:
            federation.write_site(site, data=hospital_tiles[site], extra=telemetry(folder, site))
        federation.start_agents(*SITES)
        yield federation


@pytest.fixture(scope="session")
def generated(healthy: Federation) -> dict[str, Any]:
    """The one round of the experiment `acgan`: the generator, trained by whoever can, in `healthy`."""
    healthy.submit(GENERATOR_TOML)
    healthy.wait_until_ended("acgan")
    (state,) = healthy.cli("rounds", "list", "acgan")["rounds"]
    assert isinstance(state, dict)
    return state
