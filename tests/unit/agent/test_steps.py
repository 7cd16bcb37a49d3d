"""How a task's base comes to a site: by steps from one that is here, or whole; always the right bytes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from agent.bases import Bases
from agent.link import Transfer
from agent.offers import Offer, Step
from agent.steps import fetch, way_from
from histofed import weights
from histofed.base.encoding import Encoding
from histofed.base.errors import AggregatorUnavailable, NotFound
from histofed.base.experiment import Experiment, parse_experiment
from histofed.base.ids import Digest, TaskKey
from histofed.encodings.step import step_form, writing_step
from histofed.transport.held import Held
from histofed.weights import TensorFile, Written, pieces
from tests.support.failing_disk import fail_from

ROUNDS = 3


class Centre:
    """An aggregator's models and the steps between them; hands out blobs and remembers which."""

    def __init__(self, folder: Path, encoding: Encoding) -> None:
        self.experiment: Experiment = parse_experiment(
            'name = "pilot"\nrecipe = "mean"\nrounds = 9\n[config]\ndimension = 4096\n'
            f'[aggregation]\nencoding = "{encoding}"\n'
        )
        self.blobs: dict[Digest, bytes] = {}
        self.asked: list[Digest] = []
        draw, model = np.random.default_rng(5), folder / "model-0"
        self.models = [weights.save(model, {"w": draw.standard_normal(4096).astype(np.float32)})]
        self.steps: list[Written] = []
        self._keep(model)
        for number in range(1, ROUNDS + 1):
            model = self._next(folder, model, number, draw)

    def _next(self, folder: Path, before: Path, number: int, draw: np.random.Generator) -> Path:
        new = weights.read(before)["w"] + draw.standard_normal(4096).astype(np.float32) / 1000
        form = step_form(self.experiment.file.aggregation.encoding, self.models[-1].sha256)
        target, path = folder / f"model-{number}", folder / f"step-{number}"
        if form is None:
            self.models.append(weights.save(target, {"w": new}))
        else:
            with TensorFile(before) as base, writing_step(path, base, form) as step:
                self.models.append(weights.save_stream(target, [("w", "F32", (4096,))], step.through(pieces(new))))
                self.steps.append(step.finish().file)
            self._keep(path)
        self._keep(target)
        return target

    def _keep(self, path: Path) -> None:
        from histofed.base.hashing import sha256_file

        self.blobs[sha256_file(path)] = path.read_bytes()

    def offer(self, last: int = ROUNDS, steps: int = ROUNDS) -> Offer:
        told = [
            Step(self.models[at - 1].sha256, self.steps[at - 1].sha256, self.steps[at - 1].bytes)
            for at in range(last, 0, -1)
            if self.steps
        ]
        return Offer(
            task=TaskKey.parse(f"pilot/{last + 1}/train/north"),
            attempt=1,
            experiment_toml=self.experiment.toml,
            experiment_sha256=self.experiment.sha256,
            base=self.models[last].sha256,
            base_bytes=self.models[last].bytes,
            steps=tuple(told[:steps]),
            settled_round=0,
            backup_rounds=(),
            rounds_committed=last,
            deadline=datetime(2030, 1, 1, tzinfo=UTC),
            trace=None,
        )

    async def download(self, blob: Digest, size: int, target: Path, held: Held | None, progress: Transfer) -> None:
        self.asked.append(blob)
        if blob not in self.blobs:
            raise NotFound(f"there is no blob {blob[:12]}… here")
        await asyncio.to_thread(target.write_bytes, self.blobs[blob])
        progress(size, size)


@pytest.fixture
def centre(tmp_path: Path) -> Centre:
    return make_centre(tmp_path, "bfloat16-delta")


def make_centre(tmp_path: Path, encoding: Encoding) -> Centre:
    folder = tmp_path / "centre"
    folder.mkdir()
    return Centre(folder, encoding)


@pytest.fixture
def bases(tmp_path: Path) -> Bases:
    return Bases(tmp_path / "bases")


def hold(bases: Bases, centre: Centre, number: int) -> None:
    """The site trained from this model before."""
    digest = centre.models[number].sha256
    bases.place(centre.experiment.name, digest).write_bytes(centre.blobs[digest])


def arrive(centre: Centre, bases: Bases, offer: Offer) -> list[tuple[int, int]]:
    """Fetch; the base is right. Returns the progress that was told."""
    told: list[tuple[int, int]] = []
    asyncio.run(fetch(centre, bases, offer, centre.experiment, lambda done, total: told.append((done, total))))
    assert bases.place(centre.experiment.name, offer.base).read_bytes() == centre.blobs[offer.base]
    return told


def test_a_site_without_a_base_fetches_the_model(centre: Centre, bases: Bases) -> None:
    offer = centre.offer()
    arrive(centre, bases, offer)
    assert centre.asked == [offer.base]


def test_a_site_that_holds_the_model_before_fetches_one_step(centre: Centre, bases: Bases) -> None:
    hold(bases, centre, 2)
    told = arrive(centre, bases, centre.offer())
    assert centre.asked == [centre.steps[2].sha256]
    assert told == [(centre.steps[2].bytes, centre.steps[2].bytes)]


def test_a_site_that_was_not_sampled_goes_several_steps(centre: Centre, bases: Bases) -> None:
    hold(bases, centre, 0)
    hold(bases, centre, 1)
    told = arrive(centre, bases, centre.offer())
    assert centre.asked == [centre.steps[1].sha256, centre.steps[2].sha256]
    total = centre.steps[1].bytes + centre.steps[2].bytes
    assert told == [(centre.steps[1].bytes, total), (total, total)]


def test_a_site_too_far_behind_fetches_the_model(centre: Centre, bases: Bases) -> None:
    hold(bases, centre, 0)
    offer = centre.offer(steps=2)
    arrive(centre, bases, offer)
    assert centre.asked == [offer.base]


def test_a_download_that_was_begun_goes_on(centre: Centre, bases: Bases) -> None:
    hold(bases, centre, 2)
    offer = centre.offer()
    target = bases.place(centre.experiment.name, offer.base)
    target.with_name(f"{target.name}.part").write_bytes(b"half")
    arrive(centre, bases, offer)
    assert centre.asked == [offer.base]


def test_a_step_that_is_gone_costs_nothing_but_the_question(centre: Centre, bases: Bases) -> None:
    hold(bases, centre, 2)
    del centre.blobs[centre.steps[2].sha256]
    offer = centre.offer()
    arrive(centre, bases, offer)
    assert centre.asked == [centre.steps[2].sha256, offer.base]


def test_a_base_that_was_damaged_here_leads_nowhere_and_the_model_is_fetched(centre: Centre, bases: Bases) -> None:
    hold(bases, centre, 2)
    begin = bases.place(centre.experiment.name, centre.models[2].sha256)
    content = bytearray(begin.read_bytes())
    content[-1] ^= 1
    begin.write_bytes(content)
    offer = centre.offer()
    arrive(centre, bases, offer)
    assert centre.asked == [centre.steps[2].sha256, offer.base]


@pytest.mark.parametrize("byte", [0, 4096])
def test_a_base_that_cannot_be_read_here_leads_nowhere_and_the_model_is_fetched(
    centre: Centre, bases: Bases, monkeypatch: pytest.MonkeyPatch, byte: int
) -> None:
    hold(bases, centre, 2)
    begin = bases.place(centre.experiment.name, centre.models[2].sha256)
    fail_from(monkeypatch, begin, byte)
    offer = centre.offer()
    arrive(centre, bases, offer)
    assert centre.asked == [centre.steps[2].sha256, offer.base]


def test_a_link_that_fails_is_not_a_step_that_leads_elsewhere(centre: Centre, bases: Bases) -> None:
    hold(bases, centre, 2)

    class Cut:
        async def download(self, blob: Digest, size: int, target: Path, held: Held | None, progress: Transfer) -> None:
            raise AggregatorUnavailable("the link is cut")

    with pytest.raises(AggregatorUnavailable):
        asyncio.run(fetch(Cut(), bases, centre.offer(), centre.experiment, lambda done, total: None))


def test_steps_and_older_bases_go_when_the_new_base_is_here(centre: Centre, bases: Bases) -> None:
    hold(bases, centre, 2)
    offer = centre.offer()
    arrive(centre, bases, offer)
    bases.keep_only(centre.experiment.name, offer.base)
    folder = bases.place(centre.experiment.name, offer.base).parent
    assert [path.name for path in folder.iterdir()] == [f"{offer.base}.safetensors"]


def test_an_experiment_in_float32_has_no_steps(tmp_path: Path, bases: Bases) -> None:
    plain = make_centre(tmp_path, "float32")
    hold(bases, plain, 2)
    assert way_from(bases, plain.offer(steps=0), plain.experiment) == ()
