"""Jobs in child processes: results and errors come back, crashes are repeated, nothing outlives its parent."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from aggregator.aggregate import AggregateJob, FlowerCall, Kept, UpdateInput, aggregate
from aggregator.jobs import (
    CheckJob,
    InitialiseJob,
    InspectJob,
    InspectResult,
    Job,
    decode_job,
    decode_result,
    encode_error,
    encode_job,
)
from aggregator.pool import Workers, nursery
from histofed import weights
from histofed.base.clock import FakeClock, SystemClock
from histofed.base.errors import BadData, CannotWriteState, DeadlineExceeded, HistofedError, NotFound, NoWorker, all_errors
from histofed.base.hashing import sha256_file
from histofed.base.ids import sha256
from histofed.recipes.contract import ServerRule

MEAN = {"dimension": 5, "steps": 1}
HERE = Path("/a/file")


@pytest.fixture(params=["nursery", "long way"])
async def workers(request: pytest.FixtureRequest) -> AsyncIterator[Workers]:
    born = nursery() if request.param == "nursery" else None
    yield Workers(SystemClock(), timeout_s=60, nursery=born)
    if born is not None:
        await born.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    weights.save(path, {"w": np.arange(6, dtype=np.float32)})
    return path


@pytest.fixture
def endless(tmp_path: Path, model: Path) -> InspectJob:
    """A job that waits for ever: its update is a pipe that nobody opens to write."""
    os.mkfifo(tmp_path / "pipe")
    return InspectJob(tmp_path / "pipe", model, 1.0)


def children(parent: int) -> list[int]:
    """The living children of a process's main thread."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


async def started(count: int, parent: int) -> list[int]:
    """Wait for `count` children; pidfds, so that a reused number cannot deceive."""
    async with asyncio.timeout(30):
        # another process may start them, so there is no event to wait for
        while len(found := children(parent)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0)
    return [os.pidfd_open(pid) for pid in found]


async def gone(child: int) -> bool:
    """Wait until the child of a pidfd has ended."""
    waiting = select.poll()
    waiting.register(child, select.POLLIN)
    events = await asyncio.to_thread(waiting.poll, 30_000)
    os.close(child)
    return bool(events)


# -- what comes back ---------------------------------------------------------------------------------------------------


async def test_aggregation_gives_what_the_function_gives(workers: Workers, tmp_path: Path, model: Path) -> None:
    def job(name: str) -> AggregateJob:
        return AggregateJob(
            base=model,
            updates=(UpdateInput("north", model, 2), UpdateInput("east", model, 1)),
            state=None,
            rules=(ServerRule("ema.w", "w", 0.9),),
            round=1,
            out_shared=tmp_path / f"{name}-shared",
            out_server=tmp_path / f"{name}-server",
        )

    assert await workers.run(job("child")) == aggregate(job("here"))
    assert sha256_file(tmp_path / "child-shared") == sha256_file(model)


async def test_what_changed_on_the_disk_since_the_round_before_is_not_built_on(
    workers: Workers, tmp_path: Path, model: Path
) -> None:
    kept, out = Kept(model, sha256_file(model)), tmp_path / "out"
    job = AggregateJob(model, (UpdateInput("n", model, 1),), None, (), 2, out, None, kept=(kept,))
    await workers.run(job)
    flip_last_byte(model)
    with pytest.raises(HistofedError, match="has changed on the disk: repair the disk and restore a backup") as caught:
        await workers.run(job)
    assert not isinstance(caught.value, BadData), "no site's fault"
    await asyncio.to_thread(model.unlink)
    with pytest.raises(HistofedError, match="cannot be read: No such file"):
        await workers.run(job)


async def test_a_file_that_changed_on_the_disk_is_found_by_a_check(workers: Workers, model: Path) -> None:
    check = CheckJob((Kept(model, sha256_file(model)),))
    await workers.run(check)
    flip_last_byte(model)
    with pytest.raises(HistofedError, match="has changed on the disk: repair the disk and restore a backup") as caught:
        await workers.run(check)
    assert not isinstance(caught.value, BadData), "no site's fault"


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


async def test_the_first_model_of_a_recipe_and_the_tensors_that_follow_it(workers: Workers, tmp_path: Path) -> None:
    def job(name: str, seed: int) -> InitialiseJob:
        return InitialiseJob("mean", MEAN, seed, tmp_path / f"{name}-shared", tmp_path / f"{name}-server")

    first = await workers.run(job("first", 1))
    assert await workers.run(job("same", 1)) == first != await workers.run(job("other", 2))
    for written, path in ((first.shared, tmp_path / "first-shared"), (first.server, tmp_path / "first-server")):
        assert written == weights.Written(sha256_file(path), path.stat().st_size)
    shared, server = weights.read(tmp_path / "first-shared"), weights.read(tmp_path / "first-server")
    np.testing.assert_array_equal(server["ema.value"], shared["mean.value"])


async def test_an_update_is_inspected(workers: Workers, tmp_path: Path, model: Path) -> None:
    far = tmp_path / "far"
    weights.save(far, {"w": np.arange(6, dtype=np.float32) + np.float32(3)})
    assert (await workers.run(InspectJob(far, model, 10))).norm == pytest.approx(3 * 6**0.5)
    with pytest.raises(BadData, match=r"too far from its base: its norm is 7\.34847"):
        await workers.run(InspectJob(far, model, 7))


async def test_errors_come_back_as_they_were_raised(workers: Workers, tmp_path: Path, model: Path) -> None:
    with pytest.raises(NotFound, match="'mode'"):
        await workers.run(InitialiseJob("mode", {}, 1, tmp_path / "a", tmp_path / "b"))
    with pytest.raises(BadData, match="dimension"):
        await workers.run(InitialiseJob("mean", {"dimension": 0, "steps": 1}, 1, tmp_path / "a", tmp_path / "b"))
    nowhere = AggregateJob(model, (UpdateInput("n", model, 1),), None, (), 1, tmp_path / "no folder" / "out", None)
    with pytest.raises(CannotWriteState, match="No such file or directory"):
        await workers.run(nowhere)


@pytest.mark.parametrize("cls", all_errors())
def test_every_error_survives_the_way_back(cls: type[HistofedError], endless: InspectJob) -> None:
    with pytest.raises(cls, match="what happened") as caught:
        decode_result(endless, encode_error(cls("what happened")))
    assert type(caught.value) is cls


@pytest.mark.parametrize(
    "job",
    [
        AggregateJob(HERE, (UpdateInput("s", HERE, 3),), HERE, (ServerRule("t", "s", 0.5),), 4, HERE, HERE),
        AggregateJob(HERE, (), None, (), 1, HERE, None, kept=(Kept(HERE, sha256(b"")),)),
        AggregateJob(HERE, (), None, (), 1, HERE, None, FlowerCall("Krum", {"f": 1}, 9, {"s": {"loss": 0.5}}, HERE, HERE)),
        AggregateJob(HERE, (), None, (), 1, HERE, None, FlowerCall("FedAvg", {}, 9, {}, None, HERE)),
        InitialiseJob("gan", {"classes": ["MSIH"], "nested": {"a": None}}, 2**63 - 1, HERE, HERE),
        InspectJob(HERE, HERE, 0.1),
        CheckJob((Kept(HERE, sha256(b"")), Kept(HERE, sha256(b"a")))),
    ],
)
def test_a_job_survives_the_way_there(job: Job) -> None:
    assert decode_job(encode_job(job)) == job


async def test_a_failure_that_is_not_in_the_table_is_internal_and_logged(
    workers: Workers, tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(HistofedError, match="the inspect process failed") as caught:
        await workers.run(InspectJob(tmp_path / "lost", model, 1.0))
    assert caught.value.exit_code == HistofedError.exit_code
    assert "FileNotFoundError" in caplog.text


# -- crashes, time, cancellation ---------------------------------------------------------------------------------------


async def test_a_child_that_is_killed_every_time_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HISTOFED_FAILPOINTS", "replace.before_rename=kill")
    clock = FakeClock()
    with pytest.raises(HistofedError, match="initialise process was killed by SIGKILL 3 times"):
        await Workers(clock, attempts=3).run(InitialiseJob("mean", MEAN, 1, tmp_path / "a", tmp_path / "b"))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"initialise process was killed by SIGKILL, attempt {attempt} of 3" for attempt in (1, 2, 3)
    ]
    assert clock.monotonic() == 1 + 2, "it pauses between attempts, longer each time, and not after the last"


async def test_a_child_that_is_killed_once_is_repeated_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Healing(FakeClock):
        async def sleep(self, seconds: float) -> None:
            monkeypatch.delenv("HISTOFED_FAILPOINTS")
            await super().sleep(seconds)

    undisturbed = await Workers(FakeClock()).run(InitialiseJob("mean", MEAN, 1, tmp_path / "a", tmp_path / "b"))
    monkeypatch.setenv("HISTOFED_FAILPOINTS", "replace.after_rename=kill")
    clock = Healing()
    repeated = await Workers(clock).run(InitialiseJob("mean", MEAN, 1, tmp_path / "c", tmp_path / "d"))
    assert repeated == undisturbed
    assert clock.monotonic() == 1


@pytest.mark.parametrize("refusal", [BlockingIOError(errno.EAGAIN, "no fork"), RuntimeError("can't start new thread")])
async def test_a_child_that_cannot_be_started_now_is_tried_later(
    model: Path, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    """By the job's own tries, which end it and not the daemon."""

    async def refuse(*command: str, **options: object) -> None:
        raise refusal

    with (
        monkeypatch.context() as patch,
        pytest.raises(NoWorker, match=r"check process cannot be started now: .*no fork|thread"),
    ):
        patch.setattr(asyncio, "create_subprocess_exec", refuse)
        await Workers(FakeClock(), nursery=nursery()).run(CheckJob((Kept(model, sha256_file(model)),)))


async def test_an_interpreter_that_has_gone_is_not_waited_for(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version is being installed: the daemon's next life finds it."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(FileNotFoundError):
        await Workers(FakeClock()).run(CheckJob((Kept(model, sha256_file(model)),)))


async def test_a_job_that_takes_too_long_is_stopped(endless: InspectJob) -> None:
    running = asyncio.create_task(Workers(SystemClock(), timeout_s=1.5).run(endless))
    (child,) = await started(1, os.getpid())
    with pytest.raises(DeadlineExceeded, match=r"inspect process did not end within 1\.5 s"):
        await running
    assert await gone(child)


async def test_cancelling_the_caller_ends_the_child(endless: InspectJob) -> None:
    running = asyncio.create_task(Workers(SystemClock()).run(endless))
    (child,) = await started(1, os.getpid())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await gone(child)


async def test_a_forked_child_is_stopped_when_its_caller_is_cancelled_or_the_time_is_up(endless: InspectJob) -> None:
    born = nursery()
    running = asyncio.create_task(Workers(SystemClock(), nursery=born).run(endless))
    place = await _first_child(os.getpid())
    (child,) = await started(1, place)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await gone(child)
    with pytest.raises(DeadlineExceeded, match=r"did not end within 0\.2 s"):
        await Workers(SystemClock(), timeout_s=0.2, nursery=born).run(endless)
    async with asyncio.timeout(10):
        while children(place):  # noqa: ASYNC110  # the nursery buries it in its own time
            await asyncio.sleep(0.01)
    await born.close()


async def test_a_forked_child_that_is_killed_is_repeated(model: Path, endless: InspectJob) -> None:
    born = nursery()
    clock = FakeClock()
    running = asyncio.create_task(Workers(clock, attempts=2, nursery=born).run(endless))
    place = await _first_child(os.getpid())
    killed: set[int] = set()
    for _ in range(2):
        # one that was killed is there until its nursery buries it
        while not (alive := {*children(place)} - killed):  # noqa: ASYNC110  # the kernel tells nobody of a birth
            await asyncio.sleep(0.01)
        (child,) = alive
        os.kill(child, signal.SIGKILL)
        killed.add(child)
    with pytest.raises(HistofedError, match="inspect process was killed by SIGKILL 2 times"):
        await running
    await born.close()


async def _first_child(parent: int) -> int:
    """The process id of the first child."""
    (handle,) = await started(1, parent)
    os.close(handle)
    return children(parent)[0]


@pytest.mark.parametrize("limit", [1, 2])
async def test_no_more_children_than_the_limit(endless: InspectJob, limit: int) -> None:
    workers = Workers(SystemClock(), limit=limit)
    running = [asyncio.create_task(workers.run(endless)) for _ in range(limit + 2)]
    first = await started(limit, os.getpid())
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(children(os.getpid())) == limit
    running[0].cancel()
    assert await gone(first.pop(0)), "the place is given to a job that waits"
    following = await started(limit, os.getpid())
    for task in running[1:]:  # the first may still be burying its child, which a second order would cut short
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert all([await gone(child) for child in (*first, *following)])


async def test_a_child_dies_with_its_parent(endless: InspectJob) -> None:
    code = (
        "import asyncio, sys; from aggregator.jobs import decode_job; from aggregator.pool import Workers;"
        "from histofed.base.clock import SystemClock;"
        "asyncio.run(Workers(SystemClock()).run(decode_job(sys.stdin.buffer.read())))"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdin=asyncio.subprocess.PIPE)
    assert parent.stdin is not None
    parent.stdin.write(encode_job(endless))
    parent.stdin.write_eof()
    (child,) = await started(1, parent.pid)
    parent.kill()
    await parent.wait()
    assert await gone(child)


def test_a_child_whose_parent_is_gone_already_does_nothing(endless: InspectJob) -> None:
    done = subprocess.run([sys.executable, "-m", "aggregator.worker", "1"], input=encode_job(endless), check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_library_that_prints_does_not_end_up_in_the_answer(model: Path) -> None:
    code = (
        "import os, sys, aggregator.worker as worker; from aggregator.jobs import InspectResult\n"
        "def loud(job):\n    print('hello'); os.write(1, b'there')\n    return InspectResult(2.0)\n"
        "worker.perform = loud; sys.exit(worker.main())"
    )
    job = InspectJob(model, model, 1.0)
    done = subprocess.run(
        [sys.executable, "-c", code, str(os.getpid())], input=encode_job(job), capture_output=True, check=True
    )
    assert decode_result(job, done.stdout) == InspectResult(2.0)
    assert b"hello" in done.stderr and b"there" in done.stderr


def test_without_flower_a_job_of_its_strategies_is_refused_in_words(model: Path, tmp_path: Path) -> None:
    call = FlowerCall("FedAdam", {}, 1, {}, None, tmp_path / "state")
    job = AggregateJob(model, (UpdateInput("n", model, 1),), None, (), 1, tmp_path / "out", None, call)
    # None in sys.modules is how Python says that there is no such module
    code = "import sys; sys.modules['flwr'] = None; from aggregator.worker import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, str(os.getpid())], input=encode_job(job), capture_output=True, check=False
    )
    assert done.returncode == BadData.exit_code
    with pytest.raises(BadData, match=r"install histofed\[flower\] at the aggregator"):
        decode_result(job, done.stdout)


def test_the_child_imports_nothing_heavy() -> None:
    code = "import sys, aggregator.worker; print(*{name.partition('.')[0] for name in sys.modules})"
    found = set(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split())
    assert "numpy" in found
    assert not found & {"pydantic", "grpc", "google", "sqlalchemy", "torch", "cryptography", "asyncio", "rich", "flwr"}
