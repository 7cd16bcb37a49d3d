"""The trainer's last steps with an encoding: what it writes, what it reports, and a death between clipping and encoding."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from agent import trainer
from agent.assignment import UPDATE_FILE, Assignment, Result
from aggregator.inspection import check_tensors
from histofed.base.encoding import Encoding
from histofed.base.errors import BadData, CannotWriteState
from histofed.base.hashing import sha256_file
from histofed.encodings.file import Form
from histofed.recipes.contract import Progress
from tests.unit.agent.conftest import MakeAssignment

CODED: tuple[Encoding, ...] = ("bfloat16", "float32-delta", "bfloat16-delta")


class Quiet(trainer.Reporter):
    def __init__(self) -> None:
        super().__init__(-1)

    def progress(self, progress: Progress) -> None:
        """Nobody watches."""


def train(assignment: Assignment) -> Result:
    return trainer.run(assignment, Quiet(), lambda: False)


@pytest.mark.parametrize("encoding", CODED)
def test_an_update_is_written_as_the_experiment_wants_it(make_assignment: MakeAssignment, encoding: Encoding) -> None:
    assignment = dataclasses.replace(make_assignment(dimension=10), encoding=encoding)
    result = train(assignment)
    update = assignment.output / UPDATE_FILE
    assert (result.weights.sha256, result.weights.bytes) == (sha256_file(update), update.stat().st_size)
    measured = check_tensors(update, assignment.base, 1e9, Form(encoding, assignment.base_sha256))
    assert measured == pytest.approx(result.norm)
    assert set(result.metrics) >= {"distance", "encoding_error_max", "encoding_error_rms", "encoding_ratio"}
    assert (result.metrics["encoding_error_max"] == 0.0) == (encoding == "float32-delta")
    left = {path.name for path in assignment.output.iterdir()}
    assert left == {"private.safetensors", "result.json", "shared.safetensors", UPDATE_FILE}


def test_a_clipped_update_stays_within_its_bound(make_assignment: MakeAssignment) -> None:
    assignment = dataclasses.replace(make_assignment(max_norm=0.5), encoding="bfloat16-delta")
    result = train(assignment)
    assert result.clipped
    assert 0.495 < result.norm <= 0.5


def test_plain_updates_report_nothing_of_encodings(make_assignment: MakeAssignment) -> None:
    assert set(train(make_assignment()).metrics) == {"distance"}


def test_a_death_between_clipping_and_encoding_changes_no_byte(
    make_assignment: MakeAssignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    assignment = dataclasses.replace(make_assignment(), encoding="bfloat16-delta")
    first = train(assignment)
    for path in assignment.output.iterdir():
        path.unlink()

    def full(*_: object) -> None:
        raise CannotWriteState("no space left on the device")

    with monkeypatch.context() as context:
        context.setattr(trainer, "encode_file", full)
        with pytest.raises(CannotWriteState):
            train(assignment)
    assert not (assignment.output / UPDATE_FILE).exists(), "nobody takes the plain file for the update"
    assert train(assignment) == first


def test_a_base_that_is_not_the_rounds_is_found_by_the_reader(make_assignment: MakeAssignment, tmp_path: Path) -> None:
    assignment = dataclasses.replace(make_assignment(), encoding="bfloat16-delta")
    train(assignment)
    with pytest.raises(BadData, match="says base"):
        check_tensors(assignment.output / UPDATE_FILE, assignment.base, 1e9, Form("bfloat16-delta", "cd" * 32))
