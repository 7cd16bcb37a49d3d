"""Teams of two real processes: what they agree on, and what the leader is told when the other one ends. Seconds each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from histofed.base.errors import Cancelled, ConfigError, OutOfMemory, TrainingFailed, WorkerLost
from histofed.training.team import ALONE, Team
from histofed.training.teamwork import device_of, team_of


def _adds(folder: Path, team: Team) -> None:
    tensors = [torch.full((2, 2), float(team.rank + 1)), torch.tensor(10.0 * team.rank)]
    team.add_up(tensors)
    share = team.share(["a", "b", "c", "d"])
    agreed = team.decided(5 + team.rank), team.alike(2**63 - 1), team.alike(2**63 - 2 + team.rank)
    (folder / f"{team.rank}").write_text(f"{tensors[0].tolist()} {tensors[1].item()} {share} {agreed}")


def _fails(how: str, team: Team) -> None:
    match how:
        case "memory":
            raise OutOfMemory("the memory of the GPU does not suffice")
        case "a bug":
            raise ZeroDivisionError("/".join(["data", "patient-" + str(17)]))
        case "freezes":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "ends":
            os._exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            team.add_up([torch.zeros(1)])


@pytest.mark.slow
def test_all_have_the_sum_and_the_first_ones_choice_and_know_whether_they_are_alike(tmp_path: Path) -> None:
    with team_of(2, "cpu", _adds, tmp_path) as team:
        _adds(tmp_path, team)
    assert (tmp_path / "0").read_text() == "[[3.0, 3.0], [3.0, 3.0]] 10.0 [(0, 'a'), (1, 'b')] (5, True, False)"
    assert (tmp_path / "1").read_text() == "[[3.0, 3.0], [3.0, 3.0]] 10.0 [(2, 'c'), (3, 'd')] (5, True, False)"
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("memory", OutOfMemory, "the memory of the GPU does not suffice"),
        ("a bug", TrainingFailed, "process 2 of 2 failed with ZeroDivisionError; the site's log"),
        ("killed", TrainingFailed, r"process 2 of 2 of this training was killed by signal 9 \(out of memory\?\)"),
        ("ends", TrainingFailed, "process 2 of 2 of this training ended with exit code 3 and without a word"),
        ("freezes", TrainingFailed, "process 2 of 2 of this training does not answer; it was given up"),
    ],
)
def test_the_process_that_failed_is_told(
    how: str, error: type[Exception], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error, match=words), team_of(2, "cpu", _fails, how, patience_s=3.0) as team:
        team.add_up([torch.zeros(1)])
    assert not multiprocessing.active_children()
    assert "patient-17" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_team_that_did_not_come_together_leaves_nothing_for_the_next_but_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The other one died in the middle of the meeting; the next team would have met without this process."""

    def alone(**_: object) -> None:
        raise RuntimeError("the other end of the connection is gone")

    with monkeypatch.context() as network, contextlib.ExitStack() as stack:
        network.setattr(torch.distributed, "new_group", alone)
        with pytest.raises(TrainingFailed, match=r"could not join each other \(process 1: RuntimeError"):
            stack.enter_context(team_of(2, "cpu", _fails, "killed", patience_s=3.0))
    assert "the other end of the connection is gone" in capfd.readouterr().err
    assert not torch.distributed.is_initialized()
    with team_of(2, "cpu", _adds, tmp_path) as team:
        _adds(tmp_path, team)


class _Refused:
    """A task with which a process cannot join: so accelerate refuses certain pairs of cards."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _refuse, ()


def _refuse() -> None:
    """In the other process, before it joins."""
    from accelerate import PartialState

    def refuses(*_: object, **__: object) -> None:
        raise NotImplementedError('these cards need `NCCL_P2P_DISABLE="1"`')

    PartialState.set_device = refuses


@pytest.mark.slow
def test_why_another_process_could_not_join_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    words = r"not join each other \(process 1: [A-Za-z]*Error, process 2: NotImplementedError\); the site's log says"
    with contextlib.ExitStack() as stack, pytest.raises(TrainingFailed, match=words):
        stack.enter_context(team_of(2, "cpu", _sleeps, _Refused(), patience_s=3.0))
    assert 'NotImplementedError: these cards need `NCCL_P2P_DISABLE="1"`' in capfd.readouterr().err


def _starting(monkeypatch: pytest.MonkeyPatch, then: Callable[[BaseProcess], None]) -> None:
    """What happens to a process in the instant in which it starts."""
    start = BaseProcess.start

    def started(process: BaseProcess) -> None:
        start(process)
        then(process)

    monkeypatch.setattr(BaseProcess, "start", started)


@pytest.mark.slow
def test_of_three_processes_the_one_that_was_killed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histofed.training.teamwork._END_S", 1.0)
    _starting(monkeypatch, lambda process: process.kill() if process.name == "device 2" else None)
    words = "process 3 of 3 of this training was killed by signal 9"
    with contextlib.ExitStack() as stack, pytest.raises(TrainingFailed, match=words):
        stack.enter_context(team_of(3, "cpu", _sleeps, None))
    assert not multiprocessing.active_children()


def _signalled(process: BaseProcess) -> None:
    """As by Ctrl-C at a terminal, and by a service manager that stops all."""
    assert process.pid is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.pid, number)


@pytest.mark.slow
def test_signals_to_all_processes_are_the_first_ones_to_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    _starting(monkeypatch, _signalled)
    with team_of(2, "cpu", _adds, tmp_path) as team:
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == answered
        (helper,) = multiprocessing.active_children()
        _signalled(helper)
        _adds(tmp_path, team)
    assert (tmp_path / "1").exists()


def _fails_and_leaves_with_the_leader(left: Path, team: Team) -> None:
    """As with NCCL, where leaving the group is a call of all who are in it."""
    leave = torch.distributed.destroy_process_group

    def together() -> None:
        with left.open("rb") as leader:
            leader.read(1)
        leave()

    torch.distributed.destroy_process_group = together  # type: ignore[assignment]  # called without a group
    raise OutOfMemory("the memory of the GPU does not suffice")


@pytest.mark.slow
def test_the_error_is_told_before_the_group_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, leave = tmp_path / "left", torch.distributed.destroy_process_group
    os.mkfifo(left)
    with left.open("r+b", buffering=0) as others:

        def together() -> None:
            others.write(b".")
            leave()

        monkeypatch.setattr(torch.distributed, "destroy_process_group", together)
        with pytest.raises(OutOfMemory), team_of(2, "cpu", _fails_and_leaves_with_the_leader, left, patience_s=3.0) as team:
            team.add_up([torch.zeros(1)])
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_an_error_of_the_leader_ends_the_others() -> None:
    with pytest.raises(Cancelled, match="stopped on request"), team_of(2, "cpu", _fails, "goes on"):
        raise Cancelled("stopped on request")
    assert not multiprocessing.active_children()


def _sleeps(_: object, team: Team) -> None:
    time.sleep(600)


@pytest.mark.slow
def test_a_process_that_sigkill_does_not_end_is_told_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs in a driver, where no test can bring a process; this one is not killed."""
    for bound in ("_END_S", "KILLED_S"):
        monkeypatch.setattr(f"histofed.training.teamwork.{bound}", 0.1)
    with (
        monkeypatch.context() as kernel,
        pytest.raises(WorkerLost, match="of this training did not end within"),
        team_of(2, "cpu", _sleeps, tmp_path),
    ):
        kernel.setattr(BaseProcess, "kill", lambda process: None)
    (helper,) = multiprocessing.active_children()
    helper.kill()
    helper.join()


def test_one_device_needs_nobody() -> None:
    with team_of(1, "cpu", _fails, "a bug") as team:
        assert team is ALONE
        assert team.decided(3) == 3
        assert team.alike(3)
        assert team.share(["a", "b"]) == [(0, "a"), (1, "b")]


def test_devices_that_are_not_there_are_refused() -> None:
    assert device_of("cpu", 2, 1) == "cpu"
    assert device_of("cuda:3", 1, 0) == "cuda:3"
    with pytest.raises(ConfigError, match="names one device and devices = 2 wants several"):
        device_of("cuda:0", 2, 0)
    with pytest.raises(ConfigError, match=r"this machine has [0-9]+ GPUs"), team_of(99, "auto", _fails, "never"):
        raise AssertionError("started")
