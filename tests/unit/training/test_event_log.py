"""What TensorBoard would show: every step once, also after a stop or a return."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from histofed.base.errors import CannotWriteState
from histofed.training.event_log import EventLog


def _scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    shown = EventAccumulator(str(folder))
    shown.Reload()
    return [(event.step, round(event.value, 3)) for event in shown.Scalars(name)]


def test_losses_rates_and_sheets_can_be_looked_at(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(png, "PNG")
    log = EventLog(tmp_path, 0)
    log.losses(1, {"generator_loss": 0.5, "penalty": 2.0}, 31.5)
    log.rates(1, {"generator": 1e-3, "discriminator": 2e-3})
    log.sheet(1, png.getvalue())
    log.close()
    shown = EventAccumulator(str(tmp_path))
    shown.Reload()
    assert sorted(shown.Tags()["scalars"]) == [
        "images per second",
        "loss/generator",
        "loss/penalty",
        "rate/discriminator",
        "rate/generator",
    ]
    assert _scalars(tmp_path, "rate/discriminator") == [(1, 0.002)]
    (sheet,) = shown.Images("samples")
    assert (sheet.width, sheet.height) == (8, 6)


def test_a_run_that_goes_on_repeats_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # files of one second are read in the order of this number as text; two runs of a person are never within one
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    first = EventLog(tmp_path, 0)
    for step in (1, 2, 3, 4):
        first.losses(step, {"loss": step}, 0.0)
    first.close()
    again = EventLog(tmp_path, 2)
    for step in (3, 4, 5):
        again.losses(step, {"loss": 10 * step}, 0.0)
    again.close()
    assert _scalars(tmp_path, "loss/loss") == [(1, 1), (2, 2), (3, 30), (4, 40), (5, 50)]


@pytest.mark.parametrize("files_before", [0, 9])
def test_a_return_to_an_earlier_step_forgets_what_came_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_before: int
) -> None:
    """Whatever number the file has among those of its process, which is in its name."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(files_before))
    log = EventLog(tmp_path, 0)
    for step, value in ((1, 1), (2, 2), (3, 99), (2, 20), (3, 30)):
        log.losses(step, {"loss": value}, 0.0)
    log.close()
    assert _scalars(tmp_path, "loss/loss") == [(1, 1), (2, 20), (3, 30)]


def test_the_steps_of_before_a_return_are_forgotten_also_where_nothing_is_told_of_them(tmp_path: Path) -> None:
    log = EventLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.losses(step, {"loss": step}, 0.0)
    for step in (11, 12, 25):
        log.reached(step)
    log.losses(25, {"loss": 250}, 0.0)
    log.close()
    assert _scalars(tmp_path, "loss/loss") == [(10, 10), (25, 250)]


def test_a_step_that_is_taken_again_at_once_is_told_once(tmp_path: Path) -> None:
    """Of a divergence in the second step after a good state nothing is told but that the first is taken again."""
    png = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(png, "PNG")
    log = EventLog(tmp_path, 4)
    for step, value in ((5, 5), (6, 99), (6, 60), (7, 70)):
        log.losses(step, {"loss": value}, 0.0)
        log.rates(step, {"generator": value})
        log.reached(step)
        log.sheet(step, png.getvalue())
    log.close()
    assert _scalars(tmp_path, "loss/loss") == [(5, 5), (6, 60), (7, 70)]
    assert _scalars(tmp_path, "rate/generator") == [(5, 5), (6, 60), (7, 70)]
    shown = EventAccumulator(str(tmp_path))
    shown.Reload()
    assert [event.step for event in shown.Images("samples")] == [5, 6, 7]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotWriteState, match="the TensorBoard log"):
        EventLog(tmp_path / "file" / "log", 0)
