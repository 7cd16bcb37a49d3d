"""Models and updates on their way between real daemons: what does not change travels once."""

from __future__ import annotations

from tests.support.federation import Federation, mean_experiment

FROZEN = 1_000_000
CHANGING = 50_000
EXPERIMENT = mean_experiment(
    "frozen",
    3,
    extra='[sampling]\nsites = ["north", "south"]\nminimum = 2',
    config=f"dimension = {CHANGING}\nsteps = 1\nfrozen = {FROZEN}",
)
SITES, ROUNDS = 2, 3
HEADERS = 100_000
"""Bytes around the tensors in all files together, and what is too short for a copy, at most."""


def test_a_frozen_tensor_goes_to_each_site_once_and_never_back(healthy: Federation) -> None:
    before = transferred(healthy)
    healthy.submit(EXPERIMENT)
    healthy.wait_until_ended("frozen")
    moved = {way: bytes_ - before.get(way, 0) for way, bytes_ in transferred(healthy).items()}
    once, changing = SITES * FROZEN * 4, SITES * ROUNDS * CHANGING * 4
    assert once + changing <= moved["download", "sent"] <= once + changing + HEADERS
    assert changing <= moved["upload", "sent"] <= changing + HEADERS
    assert moved["download", "copied"] >= (ROUNDS - 1) * once - HEADERS
    assert moved["upload", "copied"] >= ROUNDS * once - HEADERS
    kept = sorted((healthy.site("north") / "state" / "bases" / "frozen").iterdir())
    assert [path.name for path in kept] == [f"{healthy.parts('frozen')[-2]['shared']}.safetensors"]


def transferred(federation: Federation) -> dict[tuple[str, str], float]:
    """Bytes so far, by direction and how, as the aggregator counts them for Prometheus."""
    measured = federation.measured()
    return {
        (direction, how): measured.get(f'histofed_transfer_bytes_total{{direction="{direction}",how="{how}"}}', 0.0)
        for direction in ("upload", "download")
        for how in ("sent", "copied")
    }
