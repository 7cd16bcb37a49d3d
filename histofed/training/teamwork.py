"""Starting and ending a team: the process that is there leads, and for each further device one more is started.

The others run the same work from the same arguments; they write nothing, report nothing, and leave Ctrl-C and SIGTERM, which
may be sent to all, to the leader. However it leaves the block, nobody is left running, and whoever failed first is the one
whose error is told. They speak over the loopback
interface and meet in a file, so no port is opened to the network. Called by the workshop and by training in one place.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final, TypeVar

import torch

from histofed.base.errors import ConfigError, HistofedError, TrainingFailed, all_errors
from histofed.base.nursery import KILLED_S, hangs
from histofed.training.team import ALONE, PATIENCE_S, Team, TeamBroken, Together

Task = TypeVar("Task")
_END_S: Final = 10.0
"""For a process to end by itself, or to say why it failed; then it is killed."""
_READY: Final = ("", "")
_THE_LEADERS: Final = (signal.SIGINT, signal.SIGTERM)
"""The signals that it answers, for all."""
_ERRORS: Final = {cls.__name__: cls for cls in all_errors()}


@dataclass(frozen=True)
class _Place:
    """Where one process stands."""

    rank: int
    size: int
    meeting: Path
    cpu: bool
    patience_s: float


@dataclass(frozen=True)
class _Helper:
    process: BaseProcess
    words: Connection


def device_of(name: str, devices: int, rank: int) -> str:
    """Which device a process trains on. Raises `ConfigError` when there are fewer than wanted."""
    if devices == 1 or name == "cpu":
        return name
    if name not in ("auto", "cuda"):
        raise ConfigError(f"device {name!r} names one device and devices = {devices} wants several; use auto or cuda")
    if torch.cuda.device_count() < devices:
        raise ConfigError(
            f"devices = {devices}, but this machine has {torch.cuda.device_count()} GPUs; lower devices, or use device cpu"
        )
    return f"cuda:{rank}"


@contextlib.contextmanager
def team_of(
    devices: int, device: str, work: Callable[[Task, Team], None], task: Task, patience_s: float = PATIENCE_S
) -> Iterator[Team]:
    """This process's team inside the block. The others call `work(task, team)`: importable by name, and picklable.

    Raises the error of the process that failed first; `TrainingFailed` for one that was killed; `ConfigError` for a device
    that is not there, or without the package that several need; `WorkerLost` for one that SIGKILL does not end.
    """
    if devices == 1:
        yield ALONE
        return
    device_of(device, devices, 0)
    _check_installed()
    with tempfile.TemporaryDirectory(prefix="histofed-team-") as folder:
        places = [_Place(rank, devices, Path(folder) / "meeting", device == "cpu", patience_s) for rank in range(devices)]
        helpers: list[_Helper] = []
        try:
            with _withheld():
                for place in places[1:]:
                    helpers.append(_start(place, work, task))
            _await(helpers)
            with _joined(places[0], lambda causes: _failure_of(helpers, causes)) as team:
                yield team
        finally:
            hanging = [str(helper.process.pid) for helper in helpers if not _end(helper)]
            if hanging:
                raise hangs(f"process {', '.join(hanging)} of this training")


def _check_installed() -> None:
    try:
        import accelerate  # noqa: F401  # whether it is there
    except ImportError as error:
        raise ConfigError("several devices need the package accelerate: install histofed[devices]") from error


@contextlib.contextmanager
def _withheld() -> Iterator[None]:
    """The leader's signals come after the block, and never to a process that is started in it: it inherits the mask."""
    resource_tracker.ensure_running()  # starting it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _THE_LEADERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(place: _Place, work: Callable[[Task, Team], None], task: Task) -> _Helper:
    context = multiprocessing.get_context("spawn")  # a forked process may not use CUDA
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_help, args=(place, work, task, theirs), daemon=True, name=f"device {place.rank}")
    process.start()
    theirs.close()
    return _Helper(process, ours)


def _await(helpers: list[_Helper]) -> None:
    """Until all have started, which takes as long as importing torch; whoever joins waits for all, dead or alive."""
    for helper in helpers:
        try:
            ready = helper.words.poll(PATIENCE_S) and helper.words.recv() == _READY
        except EOFError:
            ready = False
        if not ready:
            raise _failure_of(helpers)


def _help(place: _Place, work: Callable[[Task, Team], None], task: Task, words: Connection) -> None:
    """The life of a further process. Its errors go to the leader; type and place, without the message, to the site's log."""
    for number in _THE_LEADERS:
        signal.signal(number, signal.SIG_IGN)  # blocked until now

    def apart(causes: Sequence[str]) -> TeamBroken:
        for cause in causes:
            words.send((TeamBroken.__name__, cause))
        return TeamBroken()

    try:
        words.send(_READY)
        with _joined(place, apart) as team:
            try:
                work(task, team)
            except Exception as error:
                # inside the group: leaving it waits for the leader with NCCL, and the leader waits for these words
                sys.exit(_told(error, place, words))
    except Exception as error:
        sys.exit(_told(error, place, words))


def _told(error: Exception, place: _Place, words: Connection) -> int:
    """Tell the leader, who reads the first words only; the exit code that goes with them."""
    if isinstance(error, TeamBroken):
        return TrainingFailed.exit_code  # another's error, which the leader tells
    if isinstance(error, HistofedError):
        words.send((type(error).__name__, str(error)))
        return error.exit_code
    sys.stderr.write(f"{type(error).__name__} at\n{''.join(traceback.format_tb(error.__traceback__))}")
    sentence = f"process {place.rank + 1} of {place.size} failed with {type(error).__name__}; the site's log has the place"
    words.send((TrainingFailed.__name__, sentence))
    return TrainingFailed.exit_code


@contextlib.contextmanager
def _joined(place: _Place, explain: Callable[[Sequence[str]], Exception]) -> Iterator[Team]:
    """In the process group, until the block is left; the others are told when that is by an error.

    Raises what `explain` makes of a team that broke, or, given the cause, of one that this process could not join.
    """
    from accelerate import PartialState
    from accelerate.utils import patch_environment

    rank, size = place.rank, place.size
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    # the library counts threads where nobody has; `runtime.prepare` sets them afterwards
    local = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": torch.get_num_threads()}
    meeting = {
        "init_method": place.meeting.as_uri(),
        "rank": rank,
        "world_size": size,
        "timeout": timedelta(seconds=PATIENCE_S),
    }
    try:
        try:
            with patch_environment(**environment, **local):
                PartialState(cpu=place.cpu, **meeting)
                talk = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=place.patience_s))
        except RuntimeError as error:
            traceback.print_exception(error)  # with its message, which may say what to set: it knows devices, and no tiles
            raise explain([f"process {rank + 1}: {type(error).__name__}"]) from error
        assert talk is not None
        team = Together(rank, size, talk, lambda: explain([]))
        try:
            yield team
        except BaseException:
            with contextlib.suppress(Exception):  # the error on its way is the one to be told
                team.withdraw()
            raise
    finally:
        # also where some never came: what is left of a group is taken for the next one
        with contextlib.ExitStack() as left:
            left.callback(PartialState._reset_state)
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _failure_of(helpers: list[_Helper], apart: Sequence[str] = ()) -> HistofedError:
    """What the process that failed said; or how one ended, when none did. `apart`: why the leader could not join."""
    causes = list(apart)
    for kind, sentence in _words_of(helpers):
        if kind == TeamBroken.__name__:
            causes.append(sentence)
        elif (kind, sentence) != _READY:
            return _ERRORS.get(kind, TrainingFailed)(sentence)
    return TrainingFailed(_sentence([helper.process.exitcode for helper in helpers], causes))


def _words_of(helpers: list[_Helper]) -> Iterator[tuple[str, str]]:
    """What they say, until all have ended or have been silent for long."""
    listening = list(helpers)
    while listening and (heard := wait([helper.words for helper in listening], _END_S)):
        for helper in [one for one in listening if one.words in heard]:
            try:
                yield helper.words.recv()
            except EOFError:  # it ends
                helper.process.join(_END_S)
                listening.remove(helper)


def _sentence(codes: Sequence[int | None], causes: Sequence[str]) -> str:
    """What happened to a team without an error of its own: the exit codes of the others, and why some could not join.

    Who was killed comes first: the others wait for it, or could not join, for that reason alone.
    """
    others = [(f"process {rank} of {len(codes) + 1} of this training", code) for rank, code in enumerate(codes, 2)]
    for name, code in others:
        if code is not None and code < 0:
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            return f"{name} was killed by signal {-code}{hint}"
    for name, code in others:
        if code not in (None, 0, TrainingFailed.exit_code):
            return f"{name} ended with exit code {code} and without a word; the site's log may say more"
    if causes:
        return f"the processes of this training could not join each other ({', '.join(causes)}); the site's log says why"
    for name, code in others:
        if code is None:
            return f"{name} does not answer; it was given up"
    return "the processes of this training lost each other; the site's log may say more"


def _end(helper: _Helper) -> bool:
    """It ends with the work; by then it has, or it is made to. False where it hangs in the kernel."""
    helper.process.join(_END_S)
    if helper.process.is_alive():
        helper.process.kill()
        helper.process.join(KILLED_S)
    ended = not helper.process.is_alive()
    if ended:
        helper.process.close()
    helper.words.close()
    return ended
