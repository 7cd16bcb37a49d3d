"""A checkpoint is there or not; a crash, a full disk or other work never gives half of one."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from histofed import weights
from histofed.base import durable
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
    assert _files(tmp_path) == ["checkpoint-2.safetensors", "checkpoint.json"]
    store.clear()
    assert _files(tmp_path) == []
    assert store.load() is None


def test_other_work_does_not_go_on_from_it(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, "work").save(_checkpoint(1))
    assert CheckpointStore(tmp_path, "other work").load() is None


@pytest.mark.parametrize("file", ["checkpoint.json", "checkpoint-1.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe"])
def test_a_damaged_one_is_not_used(tmp_path: Path, file: str, content: bytes) -> None:
    store = CheckpointStore(tmp_path, "work")
    store.save(_checkpoint(1))
    (tmp_path / file).write_bytes(content)
    assert store.load() is None
    store.save(_checkpoint(3))
    assert (found := store.load()) is not None
    assert found.step == 3


@pytest.mark.parametrize("place", ["tensors", "state"])
def test_a_full_disk_leaves_the_one_before(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, "work")
    store.save(_checkpoint(1))

    def full(*_: object) -> None:
        raise CannotWriteState("no space") from OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(*((weights, "save") if place == "tensors" else (durable, "replace")), full)
    with pytest.raises(CannotWriteState):
        store.save(_checkpoint(2))
    assert (found := store.load()) is not None
    assert found.step == 1


def test_a_fault_test_can_strike_once_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, passed = CheckpointStore(tmp_path, "work"), []

    def strike(name: str) -> None:
        if name == "agent.checkpoint_written":
            passed.append(store.load())

    monkeypatch.setattr(durable, "failpoint", strike)
    store.save(_checkpoint(4))
    assert [found.step for found in passed if found] == [4]
