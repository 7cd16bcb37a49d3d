"""The hospital's consent: what is not written is not allowed, and every refusal says what and why."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.consent import Consent, Decision, Policy, decide, load_policy, policy_in_force
from histofed.base.errors import ConfigError, Unreadable
from histofed.base.experiment import Experiment, parse_experiment
from histofed.base.ids import sha256
from histofed.recipes.contract import Demands
from tests.support.users import as_nobody, needs_root, open_tmp_path

tmp_path = open_tmp_path

FULL = """
experiments = ["tcga-*", "pilot"]
recipes = ["gan"]
models = ["generator:*", "discriminator:cnn"]
image_sizes = "32..256"
classes = ["MSIH", "nonMSIH"]
maximum_steps = 2000
"""
DEMANDS = Demands(("generator:paper-cnn", "discriminator:cnn"), 64, ("MSIH", "nonMSIH"), 100)


def experiment(name: str = "tcga-crc", recipe: str = "gan") -> Experiment:
    return parse_experiment(f'name = "{name}"\nrecipe = "{recipe}"\nrounds = 1\n')


def policy(folder: Path, text: str) -> Policy:
    (folder / "consent.toml").write_text(text)
    return load_policy(folder / "consent.toml")


def test_what_is_written_is_allowed(tmp_path: Path) -> None:
    answer = decide(policy(tmp_path, FULL), experiment(), DEMANDS)
    assert answer == Decision(True, "", sha256(FULL.encode()))


@pytest.mark.parametrize(
    ("name", "recipe", "demands", "words"),
    [
        ("other", "gan", DEMANDS, r"the experiment 'other' \(allowed: tcga-\*, pilot\)"),
        ("pilot", "mean", DEMANDS, r"the recipe 'mean' \(allowed: gan\)"),
        ("pilot", "gan", Demands(("discriminator:vit",), 64, (), 1), "the model 'discriminator:vit'"),
        ("pilot", "gan", Demands((), 512, (), 1), r"tiles of 512 pixels \(allowed: 32\.\.256\)"),
        ("pilot", "gan", Demands((), 31, (), 1), "tiles of 31 pixels"),
        ("pilot", "gan", Demands((), 64, ("healthy",), 1), "the class 'healthy'"),
        ("pilot", "gan", Demands((), 64, (), 2001), r"2001 steps in one task \(allowed: 2000\)"),
    ],
)
def test_what_is_not_written_is_refused_in_words(
    tmp_path: Path, name: str, recipe: str, demands: Demands, words: str
) -> None:
    answer = decide(policy(tmp_path, FULL), experiment(name, recipe), demands)
    assert not answer.allowed
    assert_matches(words, answer.reason)


def test_every_reason_is_named(tmp_path: Path) -> None:
    reason = decide(policy(tmp_path, 'recipes = ["mean"]'), experiment(), DEMANDS).reason
    for words in (
        "experiment",
        "recipe 'gan'",
        "generator:paper-cnn",
        "discriminator:cnn",
        "64 pixels (allowed: none)",
        "100 steps",
    ):
        assert words in reason


def test_without_a_file_nothing_is_allowed_and_an_example_is_given(tmp_path: Path) -> None:
    missing = load_policy(tmp_path / "consent.toml")
    answer = decide(missing, experiment(), Demands((), None, (), 0))
    assert not answer.allowed
    assert "no consent file" in answer.reason
    example = answer.reason.partition("could say: ")[2].replace(", ", "\n").replace('"*"\n', '"*", ')
    assert set(Consent.model_fields) == {line.split(" = ")[0] for line in example.splitlines()}


@needs_root
def test_a_file_in_a_folder_that_may_not_be_searched_allows_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o700)
    (folder / "consent.toml").write_text(FULL)
    with as_nobody(), pytest.raises(ConfigError, match=r"consent\.toml: cannot be read \(Permission denied\)"):
        load_policy(folder / "consent.toml")


def test_the_digest_is_that_of_the_bytes_that_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hospital writes its file anew while it is read."""
    file, read = tmp_path / "consent.toml", Path.read_bytes

    def read_and_replace(path: Path) -> bytes:
        found = read(path)
        path.write_text('experiments = ["nothing"]')
        return found

    file.write_text(FULL)
    monkeypatch.setattr(Path, "read_bytes", read_and_replace)
    found = load_policy(file)
    assert decide(found, experiment(), DEMANDS).allowed
    assert found.sha256 == sha256(FULL.encode())


def test_a_recipe_that_reads_no_image_needs_no_size(tmp_path: Path) -> None:
    text = 'experiments = ["*"]\nrecipes = ["mean"]\nmodels = ["mean"]\nmaximum_steps = 10'
    assert decide(policy(tmp_path, text), experiment("a", "mean"), Demands(("mean",), None, (), 10)).allowed


def test_sizes_may_be_a_list(tmp_path: Path) -> None:
    text = FULL.replace('"32..256"', "[64, 128]")
    found = policy(tmp_path, text)
    assert decide(found, experiment(), DEMANDS).allowed
    reason = decide(found, experiment(), Demands((), 96, (), 1)).reason
    assert "tiles of 96 pixels (allowed: 64, 128)" in reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            'recipes = ["gan"]\nmaximum_step = 3\n',
            r"consent\.toml:2: there is no key 'maximum_step'; did you mean 'maximum_steps'",
        ),
        ("zebra = 1\n", "known here: experiments"),
        ('\nmaximum_steps = "many"\n', r"consent\.toml:2: 'maximum_steps' is not allowed"),
        ("maximum_steps = -1\n", "'maximum_steps' is not allowed"),
        ('recipes = "gan"\n', r"'recipes' is not allowed: write a list of texts, \[\"gan\"\]"),
        ("recipes = [1]\n", r"'recipes' is not allowed: write a list of texts, \[\"\*\"\]"),
        (
            'image_sizes = [32, "a"]\n',
            r"'image_sizes' is not allowed: write a range as \"32..256\" or a list as \[64, 128\]",
        ),
        ('image_sizes = "256..32"\n', r"write a range as"),
        ("recipes = [\n", r"consent\.toml:\d+: this is not TOML"),
    ],
)
def test_a_broken_file_is_told_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policy(tmp_path, text)
    assert_matches(words, str(caught.value))


def test_the_file_is_read_again_each_time(tmp_path: Path) -> None:
    assert decide(policy(tmp_path, FULL), experiment(), DEMANDS).allowed
    veto = policy(tmp_path, FULL.replace("tcga-*", "nothing"))
    assert not decide(veto, experiment(), DEMANDS).allowed


words = st.text("abc-", min_size=1, max_size=3)
patterns = st.lists(words | st.just("*"), max_size=3).map(tuple)


@given(
    consent=st.builds(Consent, experiments=patterns, recipes=patterns, models=patterns, classes=patterns),
    models=st.lists(words, max_size=2).map(tuple),
    classes=st.lists(words, max_size=2).map(tuple),
    steps=st.integers(0, 3),
)
def test_the_decision_is_allowed_exactly_when_no_demand_is_beyond_the_policy(
    consent: Consent, models: tuple[str, ...], classes: tuple[str, ...], steps: int
) -> None:
    def among(name: str, allowed: tuple[str, ...]) -> bool:
        return "*" in allowed or name in allowed

    wanted = experiment("abc", "mean")
    expected = (
        among("abc", consent.experiments)
        and among("mean", consent.recipes)
        and all(among(model, consent.models) for model in models)
        and all(among(name, consent.classes) for name in classes)
        and steps <= consent.maximum_steps
    )
    answer = decide(Policy(consent, sha256(b"")), wanted, Demands(models, None, classes, steps))
    assert answer.allowed == expected
    assert bool(answer.reason) != expected


@pytest.mark.parametrize("line", FULL.strip().splitlines())
def test_a_line_that_is_removed_is_a_veto(tmp_path: Path, line: str) -> None:
    answer = decide(policy(tmp_path, FULL.replace(line, "")), experiment(), DEMANDS)
    assert not answer.allowed
    assert_matches(r"allowed: (none|0)", answer.reason)


def assert_matches(pattern: str, text: str) -> None:
    import re

    assert re.search(pattern, text), text


def test_the_policy_in_force_is_none_where_nothing_can_be_made_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "consent.toml"
    assert policy_in_force(path) == sha256(b"")
    path.write_text(FULL)
    assert policy_in_force(path) == sha256(FULL.encode())
    path.write_text("experiments = [")
    assert policy_in_force(path) is None


@pytest.mark.parametrize(("number", "passes"), [(errno.ESTALE, True), (errno.EMFILE, True), (errno.EIO, False)])
def test_a_file_that_cannot_be_read_for_a_moment_is_told_from_one_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, passes: bool
) -> None:
    def reading(path: Path) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_bytes", reading)
    if passes:
        with pytest.raises(Unreadable, match=f"cannot be read now: {os.strerror(number)}; nothing is sent"):
            policy_in_force(tmp_path / "consent.toml")
    else:
        assert policy_in_force(tmp_path / "consent.toml") is None
