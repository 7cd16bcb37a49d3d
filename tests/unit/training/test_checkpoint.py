"""A checkpoint is there or not; a crash, a full disk or other work never gives half of one."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from histofed.base.errors import CannotWriteState
from histofed.training.checkpoint import Checkpoint, CheckpointStore


def _checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        step, {"loss": step / 3}, {"a": np.full(3, step, np.float32), "random.cpu": np.arange(5, dtype=np.uint8)}
    )


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_one_comes_back_and_only_it_is_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "work")
    assert store.load() is None
    for step in (1, 2):
        store.save(_checkpoint(step))
    found = CheckpointStore(tmp_path, "work").load()
    assert found is not None
    assert (found.step, found.sums) == (2, {"loss": 2 / 3})
    assert found.tensors["a"].tolist() == [2, 2, 2]
    assert found.tensors["random.cpu"].dtype == np.uint8
    assert _files(tmp_path) == ["checkpoint.safetensors"]
    store.clear()
    assert _files(tmp_path) == []
    assert store.load() is None


def test_other_work_does_not_go_on_from_it(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, "work").save(_checkpoint(1))
    assert CheckpointStore(tmp_path, "other work").load() is None


def _with_state(state: str) -> bytes:
    header = json.dumps({"__metadata__": {"histofed.checkpoint": state}}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff\xfe" * 9,
        (2).to_bytes(8, "little") + b"{}",
        *(_with_state(state) for state in ("", "{}", "[1]", '{"version": 3}', '{"version": 3, "step": {}, "sums": 1}')),
    ],
)
def test_a_damaged_one_is_not_used(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(tmp_path, "work")
    store.save(_checkpoint(1))
    store.path.write_bytes(content)
    assert store.load() is None
    assert "the checkpoint is damaged" in caplog.text
    assert store.peek() is None
    store.save(_checkpoint(3))
    assert (found := store.load()) is not None
    assert found.step == 3


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_cut_file_is_not_used(tmp_path: Path, cut: float) -> None:
    store = CheckpointStore(tmp_path, "work")
    store.save(_checkpoint(1))
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[: int(len(whole) * cut)])
    assert store.load() is None


def test_one_of_another_version_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(tmp_path, "work")
    store.path.write_bytes(_with_state('{"version": 4}'))
    with caplog.at_level(logging.INFO):
        assert store.load() is None
    assert "other work or another version" in caplog.text
    assert store.peek() is None


def test_the_form_of_release_01_is_told_and_cleared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "checkpoint.json").write_text('{"version": 2, "fingerprint": "work", "step": 7}')
    (tmp_path / "checkpoint-7.safetensors").write_bytes(b"")
    store = CheckpointStore(tmp_path, "work")
    with caplog.at_level(logging.INFO):
        assert store.load() is None
    assert "of an older version; starting from the beginning" in caplog.text
    store.clear()
    assert _files(tmp_path) == []


def test_it_says_whose_it_is(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, "work", work={"batch": 4}).save(_checkpoint(9))
    found = CheckpointStore(tmp_path, "other work").peek()
    assert found is not None
    assert (found.fingerprint, found.work, found.state.step) == ("work", {"batch": 4}, 9)
    assert found.state.tensors == {}
    assert found.state.sums == {"loss": 3.0}


def test_a_full_disk_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, "work")
    store.save(_checkpoint(1))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWriteState):
        store.save(_checkpoint(2))
    monkeypatch.undo()
    assert (found := store.load()) is not None
    assert found.step == 1
    assert _files(tmp_path) == ["checkpoint.safetensors"]


def test_a_fault_test_can_strike_once_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, passed = CheckpointStore(tmp_path, "work"), []

    def strike(name: str) -> None:
        if name == "agent.checkpoint_written":
            passed.append(store.load())

    monkeypatch.setattr("histofed.training.checkpoint.failpoint", strike)
    store.save(_checkpoint(4))
    assert [found.step for found in passed if found] == [4]
