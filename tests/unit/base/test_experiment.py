"""An experiment file: what may stand in it, what it means when it does not, and a sentence for each mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.errors import BadData
from histofed.base.experiment import SIZE_LIMIT, ExperimentFile, check_can_begin, parse_experiment
from histofed.base.ids import sha256

LEAST = """
name = "crc-msi"
recipe = "mean"
rounds = 3
"""


def test_the_least_that_must_be_said() -> None:
    experiment = parse_experiment(LEAST)
    assert experiment.name == "crc-msi"
    assert experiment.toml == LEAST
    assert experiment.sha256 == sha256(LEAST.encode())
    assert experiment.file == ExperimentFile(name="crc-msi", recipe="mean", rounds=3)


def test_defaults_are_safe() -> None:
    file = parse_experiment(LEAST).file
    assert (file.sampling.fraction, file.sampling.minimum, file.sampling.sites) == (1.0, 2, ())
    assert (file.round.quorum, file.round.attempts, file.round.abandoned_limit) == (1, 3, 3)
    assert (file.aggregation.strategy, file.aggregation.weights, file.aggregation.encoding) == ("fedavg", "tiles", "float32")
    assert file.recipe_config == {}


def test_everything_that_can_be_said() -> None:
    file = parse_experiment(
        LEAST
        + """
        [sampling]
        fraction = 0.5
        minimum = 3
        sites = ["north-clinic", "south-clinic"]
        [round]
        quorum = 2
        deadline_s = 600
        attempts = 5
        abandoned_limit = 4
        [aggregation]
        strategy = "fedavg"
        weights = "patients"
        max_norm = 12.5
        encoding = "float32"
        max_update_bytes = 4096
        [config]
        anything = { the = ["recipe", "understands"] }
        """
    ).file
    assert file.sampling.sites == ("north-clinic", "south-clinic")
    assert (file.round.quorum, file.round.deadline_s, file.aggregation.max_norm) == (2, 600, 12.5)
    assert file.recipe_config == {"anything": {"the": ["recipe", "understands"]}}


def test_a_whole_number_may_stand_for_a_fraction() -> None:
    file = parse_experiment(LEAST + '[sampling]\nfraction = 1\nsites = ["north"]\n[aggregation]\nmax_norm = 10').file
    assert (file.sampling.fraction, file.sampling.sites, file.aggregation.max_norm) == (1.0, ("north",), 10.0)


def test_the_digest_is_of_the_text_so_even_a_comment_is_another_experiment() -> None:
    assert parse_experiment(LEAST).sha256 != parse_experiment(LEAST + "# approved by the board\n").sha256


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name =", "not TOML"),
        ("", "name: missing; recipe: missing; rounds: missing"),
        (LEAST + "epochs = 3", "epochs: no such key"),
        (LEAST + "[sampling]\nfractoin = 0.5", r"sampling\.fractoin: no such key, did you mean fraction\?"),
        (LEAST + "[aggregation]\nstrategie = 'fedavg'", r"aggregation\.strategie: no such key, did you mean strategy\?"),
        (LEAST + "ronuds = 3", "ronuds: no such key, did you mean rounds\\?"),
        (LEAST + "confgi = 3", "confgi: no such key, did you mean config\\?"),
        (LEAST.replace("rounds = 3", 'rounds = "3"'), r"rounds: Input should be a valid integer \(it is '3'\)"),
        (LEAST.replace("rounds = 3", "rounds = 3.0"), r"rounds: Input should be a valid integer"),
        (LEAST.replace("rounds = 3", "rounds = true"), r"rounds: Input should be a valid integer"),
        (LEAST + '[sampling]\nfraction = "0.5"', r"sampling\.fraction: Input should be a valid number"),
        (LEAST + '[sampling]\nsites = "north"', r"sampling\.sites: "),
        (LEAST + "[sampling]\nsites = [1]", r"sampling\.sites\.0: Input should be a valid string"),
        (LEAST + "[round]\nquorum = 1.0", r"round\.quorum: Input should be a valid integer"),
        (LEAST + "sampling = 3", r"sampling: Input should be a valid dictionary"),
        (LEAST + "[sampling]\nfraction = 2", r"sampling\.fraction: Input should be less than or equal to 1 \(it is 2\)"),
        (LEAST + "[sampling]\nfraction = 0", r"sampling\.fraction: Input should be greater than 0"),
        (LEAST + "[sampling]\nfraction = nan", r"sampling\.fraction: "),
        (LEAST + "[sampling]\nminimum = 0", r"sampling\.minimum: .* greater than or equal to 1"),
        (LEAST + '[sampling]\nsites = ["North"]', "site name 'North' is not allowed"),
        (LEAST + "[round]\nquorum = 0", r"round\.quorum: "),
        (LEAST + "[round]\nquorum = 3", r"round\.quorum = 3 is above sampling\.minimum = 2: a round could never reach it"),
        (LEAST + "[round]\ndeadline_s = 4", r"round\.deadline_s: .* greater than or equal to 5"),
        (LEAST + "[round]\ndeadline_s = 604801", r"round\.deadline_s: .* less than or equal to 604800"),
        (LEAST + "[round]\nattempts = 21", r"round\.attempts: "),
        (LEAST + '[aggregation]\nstrategy = "fedavgm"', r"aggregation: 'fedavgm' is no strategy; .*'flower:NAME'"),
        (LEAST + "[aggregation]\noptions = { eta = 1 }", r"aggregation: fedavg has no options"),
        (LEAST + '[aggregation]\nweights = "beds"', r"aggregation\.weights: "),
        (LEAST + '[aggregation]\nencoding = "int8"', r"aggregation\.encoding: "),
        (LEAST + "[aggregation]\nmax_norm = 0", r"aggregation\.max_norm: "),
        (LEAST + "[aggregation]\nmax_norm = inf", r"aggregation\.max_norm: .* finite"),
        (LEAST + "[aggregation]\nmax_norm = nan", r"aggregation\.max_norm: "),
        (LEAST.replace("rounds = 3", "rounds = 0"), "rounds: "),
        (LEAST.replace("rounds = 3", "rounds = 100001"), "rounds: "),
        (LEAST.replace("crc-msi", "../state"), "experiment name '../state' is not allowed"),
        (LEAST.replace("crc-msi", "-crc"), "experiment name '-crc' is not allowed"),
        (LEAST + "#" * SIZE_LIMIT, "larger than 65536 bytes"),
        (LEAST + "deep = " + "[" * 30_000, "nested too deeply"),
        (LEAST + "long = " + "1" * 5_000, "a number that is too long"),
    ],
)
def test_each_mistake_has_its_sentence(text: str, words: str) -> None:
    with pytest.raises(BadData, match=words):
        parse_experiment(text)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(BadData) as caught:
        parse_experiment('name = "crc"\n[sampling]\nfraction = 2\n[round]\nquorum = 0\n')
    for words in ("recipe: missing", "rounds: missing", "sampling.fraction", "round.quorum"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ('minimum = 5\nsites = ["east"]', r"minimum = 5 is above the number of sites in sampling\.sites, 1: no round"),
        ('sites = ["east"]', r"sampling\.minimum = 2 is above"),
        ('sites = ["east", "west", "east"]', r"sampling\.sites names east more than once: name each site once"),
        ("sites = []", r"sampling\.sites = \[\] names nobody: .* leave the key out"),
    ],
)
def test_an_experiment_that_could_never_begin_is_refused_and_a_stored_one_is_still_parsed(sampling: str, words: str) -> None:
    stored = parse_experiment(f"{LEAST}[sampling]\n{sampling}")
    with pytest.raises(BadData, match=words):
        check_can_begin(stored.file.sampling)


@pytest.mark.parametrize("sampling", ["", "minimum = 900", 'sites = ["east", "west"]', 'minimum = 1\nsites = ["east"]'])
def test_an_experiment_that_can_begin(sampling: str) -> None:
    check_can_begin(parse_experiment(f"{LEAST}[sampling]\n{sampling}").file.sampling)


KEYS = st.sampled_from(["name", "recipe", "rounds", "sampling.fraction", "sampling.sites", "round.quorum", "config.a", "x"])
VALUES = st.sampled_from(["1", "-1", '"crc"', "true", "[]", "{}", "nan", "1e400", "2026-01-01", "[[1]]", '"\\u0000"'])


@given(
    text=st.text(max_size=200)
    | st.dictionaries(KEYS, VALUES, max_size=8).map(
        lambda pairs: "\n".join(f"{key} = {value}" for key, value in pairs.items())
    )
)
def test_any_text_is_an_experiment_or_refused(text: str) -> None:
    try:
        experiment = parse_experiment(text)
    except BadData:
        return
    assert experiment.file.rounds >= 1
    assert experiment.sha256 == sha256(text.encode())
