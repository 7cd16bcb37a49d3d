"""What makes two calls one run, and how a folder with other work is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from histofed.base.errors import AlreadyThere, BadData
from histofed.recipes.gan.config import GanConfig
from histofed.tiles.draw import draw_tiles
from histofed.training.checkpoint import CheckpointStore
from tests.unit.recipes.gan.conftest import TABLE, MakeRunner, Runner, stretches


def test_a_finished_run_has_nothing_left_to_do_and_may_be_made_longer(run: Runner) -> None:
    run("long", steps=6)
    run("short", steps=4)
    before = run.model("short")
    assert run("short", steps=4)["state"] == "finished"
    assert run.model("short") == before
    assert run("short", steps=6)["step"] == 6
    assert run.model("short") == run.model("long")
    with pytest.raises(AlreadyThere, match="a run of 6 steps already, more than 4"):
        run("short", steps=4)


def test_other_work_in_the_folder_is_refused_in_words(run: Runner, run_on: MakeRunner, tmp_path: Path) -> None:
    run(steps=2)
    with pytest.raises(AlreadyThere, match=r"another run \(batch was 4 and is 8; seed was 0 and is 3\); go on with its"):
        run(steps=2, seed=3, table={**TABLE, "batch": 8})
    with pytest.raises(AlreadyThere, match=r"objective\.class_weight was 1\.0 and is 2\.0"):
        run(steps=2, table={**TABLE, "objective": {"class_weight": 2.0}})
    draw_tiles(tmp_path / "others", patients_per_class=2, tiles_per_patient=3, size=48)
    with pytest.raises(AlreadyThere, match="its tiles were others"):
        run_on(tmp_path / "others")(steps=2)
    assert run(steps=2, seed=3, restart=True)["seed"] == 3


def test_a_run_of_before_an_option_goes_on_without_it(run: Runner) -> None:
    """What an older release wrote says nothing of options that it did not have."""
    run(steps=4, max_steps=2)
    found = CheckpointStore(run.folder / "out", "").peek()
    assert found is not None
    recipe = found.work["recipe"]
    assert isinstance(recipe, dict) and not {"muon_rate", "decay"} & recipe.keys()
    assert len(stretches(run(steps=4))) == 2
    with pytest.raises(AlreadyThere, match=r"muon_rate was None and is 0\.001"):
        run(steps=4, table={**TABLE, "muon_rate": 1e-3})


def test_what_may_not_begin_any_more_goes_on(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class weight beside projection heads, which an older release took."""
    table = {**TABLE, "objective": {"name": "cgan", "class_weight": 0.5}}
    with monkeypatch.context() as older:
        older.setattr(GanConfig, "check_can_begin", lambda _: None)
        run(steps=4, max_steps=2, table=table)
    assert len(stretches(run(steps=4, table=table))) == 2
    for refused in ({"name": "new"}, {"restart": True}):
        with pytest.raises(BadData, match="projection heads have none; remove them"):
            run(steps=4, table=table, **refused)
    assert run(steps=4, table=table)["state"] == "finished"
    assert not (run.folder / "new" / "run.json").exists()


def test_a_damaged_checkpoint_is_not_thrown_away_silently(run: Runner) -> None:
    run(steps=2)
    (run.folder / "out" / "checkpoint.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BadData, match=r"is damaged or of another version; .* --restart"):
        run(steps=2)
    assert run(steps=2, restart=True)["state"] == "finished"
