"""One task, from the offer to the verdict, as steps that can each be repeated after a crash.

    offer → journal → consent → accept or decline → settle private tensors → download the base → train and clip (child
    process) → sign → outbox → upload → submit → verdict

Invariants: the audit journal is written before each effect; the consent file is asked for every offer, also for one that
was accepted before; what is finished is on disk before the next step begins, so an offer that comes again after a restart
continues where the last life ended. A task ends in exactly one of: declined, failed, admitted, rejected, dropped. The
daemon calls `run` for one task at a time; cancelling it checkpoints and stops the trainer and keeps everything.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from agent.assignment import Assignment, Result
from agent.config import AgentConfig
from agent.consent import Decision
from agent.desk import Desk
from agent.epochs import Epochs
from agent.failure import for_the_operator, may_succeed_later
from agent.handover import HandOver, about, spoken
from agent.offers import Offer
from agent.orders import assign
from agent.outbox import Entry
from agent.patience import PASSING, Rests, until_told
from agent.permission import ask
from agent.progress import Board, Sign, watched
from agent.rooms import Rooms
from agent.steps import fetch
from agent.tensors import KeptTensors
from agent.training import train
from agent.update import finish
from histofed.base.errors import (
    AggregatorUnavailable,
    CannotWriteState,
    HistofedError,
    NotAuthorised,
    NotFound,
    Stale,
    TryLater,
)
from histofed.base.experiment import Experiment
from histofed.base.failpoints import failpoint
from histofed.base.ids import TaskKey
from histofed.telemetry import attributes as names
from histofed.telemetry.logs import fields

log = logging.getLogger(__name__)

T = TypeVar("T")


class Work:
    """The tasks of one site, one at a time."""

    def __init__(self, desk: Desk, folder: Path, config: AgentConfig) -> None:
        self._desk = desk
        self._config = config
        self._in_force = {config}
        """Every configuration since the task in hand began: what it fails for may name a place of any."""
        self._rooms = Rooms(folder)
        self._handover = HandOver(desk, self._rooms, lambda: self.config, self._clear)
        self.epochs = Epochs(desk, self._handover)
        self.tensors = KeptTensors(desk, self._rooms)
        self.sign = Sign(desk.clock)
        self._rests = Rests(desk.clock)

    @property
    def config(self) -> AgentConfig:
        """What a reload may change; the next step of a task sees it."""
        return self._config

    @config.setter
    def config(self, config: AgentConfig) -> None:
        self._config = config
        self._in_force.add(config)

    async def run(self, offer: Offer) -> None:
        """Do the task, or say why not. Raises only what concerns the connection: the offer will come again."""
        task, self._in_force = offer.task, {self._config}
        self.sign.task(task)
        try:
            await self._rest(offer)
            await self._steps(offer)
        except Stale as error:
            self.drop(task, offer.attempt, str(error))
        except (AggregatorUnavailable, NotAuthorised, NotFound):
            # an aggregator that does not know a round which it offered may have been put back: the next hello tells
            raise
        except HistofedError as error:
            await self._fail(offer, error)
        except Exception as error:
            log.exception("task %s ended by an error of the agent itself; please report it", task)
            unforeseen = HistofedError(f"the agent failed with {type(error).__name__}; the site's log has the place")
            await self._fail(offer, unforeseen)
        finally:
            self.sign.take_down()

    async def flush(self, judged: Callable[[TaskKey], None]) -> None:
        """Hand over what an earlier connection left in the outbox; `judged` hears of each task that got its verdict.

        Raises what keeps every update from this aggregator and does not pass.
        """
        try:
            await self._handover.flush(self.sign, judged)
        finally:
            self.sign.take_down()

    async def drop_unwanted(self) -> None:
        """Drop the task in hand when its round closed, or its experiment was cancelled, while this agent was away.

        A finished one is left to its verdict: of what it admitted the aggregator wants nothing more either.
        """
        held = self._desk.state.task_in_hand()
        if held is None or self._desk.outbox.holds(held.task):
            return
        try:
            answer = await self._desk.link.report(held.task, held.attempt, "waiting", 0, 0, {}, 0.0)
        except (Stale, NotFound) as error:
            self.drop(held.task, held.attempt, str(error))
            return
        if not answer.wanted:
            self.drop(held.task, held.attempt, answer.reason or "the aggregator does not want the task any more")

    def attempt_of(self, task: TaskKey) -> int | None:
        """The attempt at `task` that is in hand or waits in the outbox; None when nothing is known of it."""
        held, entry = self._desk.state.task_in_hand(), self._desk.outbox.get(task)
        if held is not None and held.task == task:
            return held.attempt
        return None if entry is None else entry.attempt

    def has_begun(self, task: TaskKey) -> bool:
        """Whether something of the work on `task` is here, also of one that waits behind another experiment's."""
        return self._rooms.room(task).exists()

    def drop(self, task: TaskKey, attempt: int, reason: str) -> None:
        """Nobody wants `task` any more: forget it and everything that was made for it."""
        desk = self._desk
        desk.journal.append("task.dropped", subject=spoken(task, attempt), outcome="refused", reason=reason)
        self._handover.forget(task, attempt, reason)
        self._clear(task)
        log.info("task %s is dropped: %s", task, reason, extra=fields(task, event="task.dropped"))

    async def _rest(self, offer: Offer) -> None:
        """Give this machine time before another attempt at what it had no room for."""
        pause = self._rests.end(offer.task)
        if pause > 0:
            self.sign.show(f"attempt {offer.attempt} rests first")
            log.warning("attempt %d at task %s begins in %.0f s", offer.attempt, offer.task, pause, extra=fields(offer.task))
            await self._desk.clock.sleep(pause)

    # -- the steps, in their order -------------------------------------------------------------------------------------

    async def _steps(self, offer: Offer) -> None:
        desk = self._desk
        desk.journal.append("task.offered", subject=spoken(offer.task, offer.attempt), trace=offer.trace)
        experiment, decision = await ask(offer, lambda: self.config, desk)
        if experiment is None or not decision.allowed:
            await self._decline(offer, decision)
            return
        await self._accept(offer, decision)
        private_round = self.tensors.settle(offer)
        entry = self._handover.waiting(offer, decision) or await self._make(offer, experiment, decision, private_round)
        await self._hand_over(offer, entry)

    async def _make(self, offer: Offer, experiment: Experiment, decision: Decision, private_round: int) -> Entry:
        desk = self._desk
        base = await self._download(offer, experiment)
        assignment = assign(
            *(offer, experiment, self.config),
            base=base,
            private=desk.private.committed(experiment.name),
            private_round=private_round,
            output=self._rooms.output(offer.task),
        )
        result = await self._train(offer, assignment)
        return finish(offer, assignment, result, decision, desk)

    async def _decline(self, offer: Offer, decision: Decision) -> None:
        log.warning("task %s is declined: %s", offer.task, decision.reason, extra=fields(offer.task, event="task.declined"))
        link, task = self._desk.link, offer.task
        await self._until_told(
            "decline the task", lambda: link.decline(task, offer.attempt, decision.reason, decision.policy_sha256)
        )
        self._clear(task)

    async def _accept(self, offer: Offer, decision: Decision) -> None:
        desk, task = self._desk, offer.task
        self._rooms.keep_only(task)
        desk.state.take(task, offer.attempt, offer.experiment_sha256, offer.base)
        failpoint("agent.task_accepted")
        await self._until_told("accept the task", lambda: desk.link.accept(task, offer.attempt, decision.policy_sha256))
        log.info("task %s is accepted", task, extra=fields(task, event="task.accepted", attempt=offer.attempt))

    async def _download(self, offer: Offer, experiment: Experiment) -> Path:
        """The round's global tensors; a file that is there is checked again."""
        desk = self._desk
        target = desk.bases.place(experiment.name, offer.base)
        told = {**about(offer.task, offer.attempt), names.MODEL_DIGEST: offer.base, names.MODEL_BYTES: offer.base_bytes}
        with desk.tracing.span(names.TASK_DOWNLOAD, told, parent=offer.trace) as span:
            board = self.sign.board("download")
            await self._until_told(
                "download the model",
                lambda: self._watched(
                    offer, board, lambda: fetch(desk.link, desk.bases, offer, experiment, board.transferred)
                ),
                # a full disk here is this site's, and waiting does not empty it
                passing=(AggregatorUnavailable, TryLater),
            )
            desk.bases.keep_only(experiment.name, offer.base)
            span.outcome("ok")
        failpoint("agent.weights_stored")
        return target

    async def _train(self, offer: Offer, assignment: Assignment) -> Result:
        """Train in a child process, or take what a child finished before a restart."""
        desk, room = self._desk, self._rooms.room(offer.task)
        with desk.tracing.span(names.TASK_TRAIN, about(offer.task, offer.attempt), parent=offer.trace) as span:
            done = self._rooms.finished(offer.task, assignment)
            if done is None:
                self._rooms.begin(offer.task, assignment)
                board = self.sign.board("train")
                stop, trainers = self.config.trainer.stop_seconds, desk.trainers
                with self._rooms.training(offer.task, offer.attempt):
                    done = await self._watched(offer, board, lambda: train(room, assignment, board.trained, stop, trainers))
            span.set(
                {
                    names.STEPS: done.steps,
                    names.TILES_BUCKET: names.tiles_bucket(done.tiles),
                    names.UPDATE_NORM: done.norm,
                    names.UPDATE_CLIPPED: done.clipped,
                }
            )
            span.outcome("ok")
        for note in done.notes:
            log.info("training: %s", note, extra=fields(offer.task))
        return done

    async def _hand_over(self, offer: Offer, entry: Entry) -> None:
        board = self.sign.board("upload")
        verdict = await self._until_told("hand the update over", lambda: self._handover.deliver(entry, board, offer.trace))
        self.epochs.note_history()
        if verdict is None:
            # the hospital's rules have changed meanwhile: they are asked again
            await self._steps(offer)

    async def _fail(self, offer: Offer, error: HistofedError) -> None:
        """Tell the site's log everything and the aggregator what may leave the site."""
        desk, task = self._desk, offer.task
        retryable = may_succeed_later(error)
        log.error("task %s failed: %s", task, error, extra=fields(task, event="task.failed", attempt=offer.attempt))
        reason = for_the_operator(error, *self._in_force)
        self._rests.begin(task, error, offer.attempt, offer.deadline - desk.link.aggregators_now())
        try:
            desk.journal.append(
                "task.failed", subject=spoken(task, offer.attempt), outcome="failed", reason=reason, trace=offer.trace
            )
        except CannotWriteState as unwritten:
            # the one message that goes out unjournalled: that nothing can be journalled here
            log.error("the failure is not in the audit journal: %s", unwritten)
        try:
            await self._until_told("report the failure", lambda: desk.link.fail(task, offer.attempt, reason, retryable))
        except (Stale, NotFound) as late:
            log.info("nobody waits for task %s any more: %s", task, late, extra=fields(task))
            if (entry := desk.outbox.get(task)) is not None and entry.attempt == offer.attempt:
                # the aggregator has it already, perhaps: after the next beat it is asked for its verdict
                return
        else:
            if retryable:
                self._handover.withhold(task, f"attempt {offer.attempt} failed")
        if not retryable:
            self._handover.forget(task, offer.attempt, reason)
            self._clear(task)

    # -- small things --------------------------------------------------------------------------------------------------

    async def _until_told(
        self,
        what: str,
        operation: Callable[[], Awaitable[T]],
        passing: tuple[type[HistofedError], ...] = PASSING,
    ) -> T:
        desk = self._desk
        return await until_told(what, operation, clock=desk.clock, random=desk.random, passing=passing)

    async def _watched(self, offer: Offer, board: Board, operation: Callable[[], Awaitable[T]]) -> T:
        return await watched(self._desk.link, offer.task, offer.attempt, board, operation, self._desk.clock)

    def _clear(self, task: TaskKey) -> None:
        """The task is over here."""
        self._rests.end(task)
        self._rooms.clear(task)
        held = self._desk.state.task_in_hand()
        if held is not None and held.task == task:
            self._desk.state.put_down()
