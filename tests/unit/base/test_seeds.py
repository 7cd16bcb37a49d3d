"""Seeds say what they are for, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from histofed.base.ids import experiment_id, site_id
from histofed.base.seeds import sample_sites, seed, training_seed

SITES = [site_id(name) for name in ("east", "north", "south", "west")]
CRC = experiment_id("crc")


@given(st.text(), st.lists(st.text() | st.integers()))
def test_a_seed_has_63_bits(purpose: str, parts: list[str | int]) -> None:
    assert 0 <= seed(purpose, *parts) < 2**63


def test_parts_cannot_run_into_each_other() -> None:
    assert len({seed("train", "ab", "c"), seed("train", "a", "bc"), seed("train", "abc"), seed("traina", "bc")}) == 4


def test_every_part_matters() -> None:
    seeds = {
        training_seed(experiment_id(experiment), number, site_id(site))
        for experiment in ("crc", "crd")
        for number in (1, 2)
        for site in ("north", "south")
    }
    assert len(seeds) == 8


def test_seeds_do_not_change_between_releases() -> None:
    assert training_seed(CRC, 1, site_id("north")) == 8964523552653052723


@given(st.permutations(SITES), st.integers(1, 1000), st.integers(0, 6))
def test_a_sample_depends_on_the_round_alone(eligible: list[str], number: int, count: int) -> None:
    sites = [site_id(name) for name in eligible]
    sample = sample_sites(CRC, number, sites, count)
    assert sample == sample_sites(CRC, number, SITES, count)
    assert list(sample) == sorted(set(sample))
    assert len(sample) == min(count, 4)


def test_over_the_rounds_every_site_has_its_turn() -> None:
    turns = [site for number in range(1, 201) for site in sample_sites(CRC, number, SITES, 2)]
    assert all(60 < turns.count(site) < 140 for site in SITES)
