"""The trainer as a real child process: its result, its errors in words, and its end in every way a process can end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from agent.assignment import encode, read_assignment, write
from agent.training import Trainers, train
from histofed import weights
from histofed.base.errors import BadData, CannotWriteState, TrainingFailed, WorkerLost
from histofed.base.nursery import Nursery
from histofed.recipes.contract import Progress
from tests.support.agent_site import until
from tests.support.processes import children, has_ended, open_descriptors, trainers
from tests.unit.agent.conftest import MakeAssignment

STOP_S = 20.0


def ignore(progress: Progress) -> None:
    """Nobody watches."""


class Watch:
    """The progress of a training; the n-th step can be awaited."""

    def __init__(self, wanted: int) -> None:
        self.seen: list[Progress] = []
        self._wanted = wanted
        self.reached = asyncio.Event()

    def __call__(self, progress: Progress) -> None:
        self.seen.append(progress)
        if progress.step >= self._wanted:
            self.reached.set()


def child() -> int:
    (found,) = trainers()
    return found


async def test_a_training_gives_a_clipped_update_and_reports_every_step(
    tmp_path: Path, make_assignment: MakeAssignment
) -> None:
    watch = Watch(5)
    result = await train(tmp_path, make_assignment(max_norm=0.01), watch, STOP_S)
    assert [progress.step for progress in watch.seen] == [1, 2, 3, 4, 5]
    assert set(watch.seen[0].losses) == {"distance"}
    assert (result.tiles, result.patients, result.steps) == (100, 10, 5)
    assert result.clipped
    assert result.norm <= 0.01 < result.norm_before
    update = tmp_path / "output" / "update.safetensors"
    assert update.stat().st_size == result.weights.bytes
    with weights.TensorFile(update) as new, weights.TensorFile(tmp_path / "base.safetensors") as old:
        assert weights.difference(new, old).norm == result.norm
    assert (tmp_path / "output" / "private.safetensors").exists()


async def test_the_same_assignment_gives_the_same_bytes(tmp_path: Path, make_assignment: MakeAssignment) -> None:
    first = await train(tmp_path, make_assignment(), ignore, STOP_S)
    second = await train(tmp_path, make_assignment(), ignore, STOP_S)
    assert first == second


async def test_bad_data_is_told_in_the_recipes_own_words(tmp_path: Path, make_assignment: MakeAssignment) -> None:
    with pytest.raises(BadData, match="belong to other work"):
        await train(tmp_path, make_assignment(dimension=11), ignore, STOP_S)


async def test_a_killed_trainer_is_told_and_can_go_on(tmp_path: Path, make_assignment: MakeAssignment) -> None:
    watch = Watch(1)
    running = asyncio.create_task(train(tmp_path, make_assignment(delay_s=0.05, steps=200), watch, STOP_S))
    await watch.reached.wait()
    os.kill(child(), signal.SIGKILL)
    with pytest.raises(TrainingFailed, match=r"killed by signal 9 \(out of memory\?\)"):
        await running
    assert not trainers()


async def test_cancelling_writes_a_checkpoint_from_which_it_goes_on(tmp_path: Path, make_assignment: MakeAssignment) -> None:
    assignment = make_assignment(delay_s=0.02, steps=40)
    watch = Watch(3)
    running = asyncio.create_task(train(tmp_path, assignment, watch, STOP_S))
    await watch.reached.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not trainers()
    again = Watch(40)
    resumed = await train(tmp_path, assignment, again, STOP_S)
    assert 3 < again.seen[0].step <= watch.seen[-1].step + 2
    (tmp_path / "output" / "update.safetensors").unlink()
    assert (await train(tmp_path, assignment, ignore, STOP_S)).weights == resumed.weights


async def test_a_trainer_that_does_not_stop_is_killed(
    tmp_path: Path, make_assignment: MakeAssignment, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch(1)
    running = asyncio.create_task(train(tmp_path, make_assignment(delay_s=0.05, steps=500), watch, 0.2))
    await watch.reached.wait()
    # a stopped process cannot hear SIGTERM
    os.kill(child(), signal.SIGSTOP)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not trainers()
    assert "is killed" in caplog.text


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
async def test_a_full_disk_is_told(
    tmp_path: Path, make_assignment: MakeAssignment, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    monkeypatch.setenv("HISTOFED_FAILPOINTS", f"replace.before_rename={error}")
    with pytest.raises(CannotWriteState, match="free space or repair the disk"):
        await train(tmp_path, make_assignment(), ignore, STOP_S)


async def test_what_the_trainer_prints_reaches_the_log_without_paths_of_the_data(
    tmp_path: Path, make_assignment: MakeAssignment, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "site" / "sitecustomize.py"
    module.parent.mkdir()
    module.write_text(
        f"import os, sys\nprint('harmless words', file=sys.stderr)\n"
        f"print('cannot open {tmp_path / 'tiles' / 'patient-17.png'}', file=sys.stderr)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{module.parent}:{Path.cwd()}")
    caplog.set_level(logging.DEBUG)
    await train(tmp_path, make_assignment(), ignore, STOP_S)
    assert "harmless words" in caplog.text
    assert "patient-17" not in caplog.text


async def test_an_unexpected_error_is_told_by_class_and_place_alone(
    tmp_path: Path, make_assignment: MakeAssignment, caplog: pytest.LogCaptureFixture
) -> None:
    assignment = make_assignment()
    assignment.base.unlink()
    with pytest.raises(TrainingFailed, match="failed with FileNotFoundError"):
        await train(tmp_path, assignment, ignore, STOP_S)
    assert "FileNotFoundError in the trainer" in caplog.text
    assert "base.safetensors" not in caplog.text


async def test_trainers_from_a_nursery_do_the_same(tmp_path: Path, make_assignment: MakeAssignment) -> None:
    born = Trainers()
    expected = await train(tmp_path, make_assignment(), ignore, STOP_S)
    assert await train(tmp_path, make_assignment(), ignore, STOP_S, born) == expected
    with pytest.raises(BadData, match="belong to other work"):
        await train(tmp_path, make_assignment(dimension=11), ignore, STOP_S, born)
    watch = Watch(1)
    running = asyncio.create_task(train(tmp_path, make_assignment(delay_s=0.05, steps=200), watch, STOP_S, born))
    await watch.reached.wait()
    os.kill(child(), signal.SIGKILL)
    with pytest.raises(TrainingFailed, match="killed by signal 9"):
        await running
    watch = Watch(1)
    running = asyncio.create_task(train(tmp_path, make_assignment(delay_s=0.05, steps=300), watch, STOP_S, born))
    await watch.reached.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not trainers(), "it wrote its checkpoint and ended"
    await born.close()
    assert not children()


class Unkillable:
    """A child in uninterruptible sleep, as a hung GPU driver makes them; no test can bring a process there."""

    pid = 2**22 + 1
    returncode: int | None = None

    def __init__(self) -> None:
        self.signals: list[int] = []
        self.started = asyncio.Event()

    async def start(self, arguments: Sequence[str], descriptors: Sequence[int]) -> Unkillable:
        self.started.set()
        return self

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    async def wait(self) -> int:
        await asyncio.Event().wait()
        return 0

    async def close(self) -> None:
        """A nursery's child does what the daemon did before."""


async def test_a_trainer_that_sigkill_does_not_end_is_told_and_not_waited_for(
    tmp_path: Path, make_assignment: MakeAssignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histofed.base.nursery.KILLED_S", 0.05)
    hung = Unkillable()

    async def nursery(threads: int) -> Unkillable:
        return hung

    born = Trainers()
    monkeypatch.setattr(born, "nursery", nursery)
    lost = asyncio.create_task(born.lost())
    running = asyncio.create_task(train(tmp_path, make_assignment(), ignore, 0.05, born))
    await hung.started.wait()
    assert not lost.done()
    running.cancel()
    with pytest.raises(WorkerLost, match=r"did not end within .* of SIGKILL"):
        await running
    assert hung.signals == [signal.SIGTERM]
    with pytest.raises(WorkerLost, match="restart this machine"):
        await lost


class NoNursery(Trainers):
    """Each trainer is started the long way, and is a script of the test's."""

    async def nursery(self, threads: int) -> Nursery:
        return Barren("agent.trainer", {})


class Barren(Nursery):
    """Has no children."""

    async def start(self, arguments: Sequence[str], descriptors: Sequence[int]) -> None:
        """None can be had."""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """`script(lines)`: what a trainer runs in the place of Python. It writes the process that it leaves to $LEFT."""
    left = tmp_path / "left"

    def write_it(lines: str) -> None:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        monkeypatch.setenv("LEFT", str(left))
        for module in ("histofed.base.nursery", "agent.training"):
            monkeypatch.setattr(f"{module}.KILLED_S", 0.3)

    yield write_it
    os.kill(int(left.read_text()), signal.SIGKILL)


async def test_what_a_dead_trainer_left_and_sigkill_does_not_end_is_not_waited_for(
    tmp_path: Path, make_assignment: MakeAssignment, script: Callable[[str], None]
) -> None:
    """A helper that hangs in a driver holds the trainer's pipes; here it is out of reach of the signal."""
    script("setsid sh -c 'echo $$ > $LEFT; exec sleep 600' &\nuntil [ -s $LEFT ]; do sleep 0.01; done\nexit 71")
    born = NoNursery()
    with pytest.raises(WorkerLost, match=r"what process [0-9]+ left behind did not end"):
        await asyncio.wait_for(train(tmp_path, make_assignment(), ignore, STOP_S, born), 30)
    with pytest.raises(WorkerLost, match="restart this machine"):
        await asyncio.wait_for(born.lost(), 30)


async def test_a_helper_that_outlives_its_killed_trainer_is_told(
    tmp_path: Path, make_assignment: MakeAssignment, script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next training would meet it on its GPU."""
    script("sleep 600 &\necho $! > $LEFT\nexec sleep 600")
    monkeypatch.setattr("agent.training._kill_group", lambda process: None)
    born = NoNursery()
    running = asyncio.create_task(train(tmp_path, make_assignment(), ignore, 0.05, born))
    await until(lambda: (tmp_path / "left").exists() and (tmp_path / "left").read_text() != "")
    running.cancel()
    with pytest.raises(WorkerLost, match=rf"process {(tmp_path / 'left').read_text().strip()} of the group"):
        await running
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(born.lost(), 30)


async def test_another_number_of_threads_needs_another_nursery() -> None:
    born = Trainers()
    one = await born.nursery(1)
    assert await born.nursery(1) is one
    assert await born.nursery(2) is not one


async def test_no_descriptor_is_left_open(tmp_path: Path, make_assignment: MakeAssignment) -> None:
    await train(tmp_path, make_assignment(), ignore, STOP_S)
    before = open_descriptors()
    await train(tmp_path, make_assignment(), ignore, STOP_S)
    assert open_descriptors() == before


def test_the_trainer_dies_with_the_agent(tmp_path: Path, make_assignment: MakeAssignment) -> None:
    assignment = tmp_path / "assignment"
    write(assignment, make_assignment(delay_s=0.05, steps=1000))
    program = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom agent.assignment import read_assignment\n"
        "from agent.training import train\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "asyncio.run(train(folder, read_assignment(folder / 'assignment'), lambda p: print(p.step, flush=True), 5.0))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline().strip() == "1"
        (trainer,) = trainers(agent.pid)
        os.kill(agent.pid, signal.SIGKILL)
        agent.wait()
    assert has_ended(trainer, 10)


def test_documents_come_back_as_they_were(tmp_path: Path, make_assignment: MakeAssignment) -> None:
    assignment = make_assignment(scale=0.5)
    write(tmp_path / "a", assignment)
    assert read_assignment(tmp_path / "a") == assignment
    assert (tmp_path / "a").read_bytes() == encode(assignment)


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"{}", lambda data: data + b"x"])
def test_a_damaged_assignment_is_told(
    tmp_path: Path, make_assignment: MakeAssignment, damage: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "a").write_bytes(damage(encode(make_assignment())))
    with pytest.raises(BadData, match="cannot be read"):
        read_assignment(tmp_path / "a")
