"""What must be true of the rounds and models on an aggregator's disk, whatever happened on the way."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from aggregator.rounds import Round, RoundState
from aggregator.tasks import TaskState
from histofed.audit.record import SYSTEM
from histofed.audit.verify import RESTORED
from histofed.base.ids import Digest, ExperimentId, RoundKey
from histofed.base.seeds import sample_sites
from tests.faults.facts import Disk, ModelFact, Violation


def nothing_twice(disk: Disk) -> Iterator[Violation]:
    admissions = Counter((row.round, row.facts["site"]) for row in disk.events if row.name == "Admitted")
    for (key, site), count in admissions.items():
        if count > 1:
            yield Violation("twice", f"the update of {site} in round {key} was admitted {count} times")
    for model in disk.models:
        for site, count in Counter(site for site, _ in model.contributions).items():
            if count > 1:
                yield Violation("twice", f"{site} is {count} times in model {_round_of(model)}")
    manifests = Counter(
        task.manifest for state in disk.rounds for task in state.tasks if task.state is TaskState.ADMITTED and task.manifest
    )
    for manifest, count in manifests.items():
        if count > 1:
            yield Violation("twice", f"manifest {manifest[:12]} was admitted in {count} tasks")
    for (experiment, number), count in Counter((model.experiment, model.round) for model in disk.models).items():
        if count > 1:
            yield Violation("twice", f"round {experiment}/{number} has {count} models")


def aggregates_are_whole(disk: Disk) -> Iterator[Violation]:
    models = {model.digest: model for model in disk.models}
    chooses = {trial.name for trial in disk.trials if trial.chooses}
    for state in disk.rounds:
        admitted = {(task.site, task.weights) for task in state.tasks if task.state is TaskState.ADMITTED}
        if any(task.manifest is None for task in state.tasks if task.state is TaskState.ADMITTED):
            yield Violation("missing", f"round {state.key}: an admitted update has no manifest")
        if state.state is not RoundState.COMMITTED:
            continue
        model = models.get(Digest(state.model or ""))
        if model is None:
            yield Violation("missing", f"round {state.key} is committed, and its model {state.model} is not there")
            continue
        inside = set(model.contributions)
        if inside - admitted or (admitted - inside and state.key.experiment not in chooses):
            yield Violation(
                "missing",
                f"round {state.key}: admitted are {_files(admitted)}; in the aggregate are {_files(inside)}",
            )


def one_line_of_rounds(disk: Disk) -> Iterator[Violation]:
    """Rounds count from 1; each starts from the newest model; at most one is open; each model has its round."""
    for name, states in _by_experiment(disk).items():
        if [state.key.number for state in states] != list(range(1, len(states) + 1)):
            yield Violation("chain", f"the rounds of {name} are {[state.key.number for state in states]}")
        if any(not state.ended for state in states[:-1]):
            yield Violation("chain", f"{name} has a round after one that is not ended")
        models = {model.round: model for model in disk.models if model.experiment == name}
        if states and 0 not in models:
            yield Violation("chain", f"{name} has rounds and no first model")
            continue
        newest = models.get(0)
        for state in states:
            assert newest is not None
            if state.base != newest.digest:
                yield Violation("chain", f"round {state.key} starts from {state.base[:12]}, not from {newest.digest[:12]}")
            if state.state is RoundState.COMMITTED and (made := models.get(state.key.number)) is not None:
                if made.base != newest.digest:
                    yield Violation("chain", f"model {_round_of(made)} does not follow {_round_of(newest)}")
                newest = made
        committed = {state.key.number for state in states if state.state is RoundState.COMMITTED}
        for number in models.keys() - committed - {0}:
            yield Violation("chain", f"there is a model of round {name}/{number}, which is not committed")


def limits_were_kept(disk: Disk) -> Iterator[Violation]:
    for state in disk.rounds:
        if not set(state.sampled) <= set(state.eligible):
            yield Violation("limits", f"round {state.key} sampled sites that were not eligible")
        drawn = sample_sites(state.key.experiment, state.key.number, state.eligible, len(state.tasks))
        if drawn != state.sampled:
            yield Violation("limits", f"round {state.key}: the sample does not follow from experiment, round and sites")
        if state.state is RoundState.COMMITTED and len(state.admitted) < state.quorum:
            yield Violation("limits", f"round {state.key} was committed with {len(state.admitted)} of {state.quorum}")
        if any(task.attempt > state.attempts for task in state.tasks):
            yield Violation("limits", f"round {state.key}: a task was offered more than {state.attempts} times")
    rounds = _by_experiment(disk)
    for trial in disk.trials:
        states = rounds.get(trial.name, [])
        committed = sum(state.state is RoundState.COMMITTED for state in states)
        if committed > trial.rounds or (trial.state == "finished") > (committed == trial.rounds):
            yield Violation("limits", f"{trial.name} is {trial.state} with {committed} of {trial.rounds} rounds")
        if trial.state == "failed" and states:
            yield Violation("limits", f"{trial.name} has failed, though its first model was made")


def rests_were_due(disk: Disk) -> Iterator[Violation]:
    """The aggregator pauses an experiment after so many lost rounds in a row, not sooner; a resume forgives those before it.

    Not looked at after a restore, which takes rounds back that the journal knows.
    """
    if any(record.action == RESTORED for record in disk.journal):
        return
    limits = {trial.name: trial.abandoned_limit for trial in disk.trials}
    lost = {state.key for state in disk.rounds if state.state is RoundState.ABANDONED}
    newest, forgiven = Counter[str](), Counter[str]()

    def due(name: str) -> bool:
        tail = range(newest[name], newest[name] - limits[name], -1)
        return tail[-1] > forgiven[name] and all(RoundKey(ExperimentId(name), number) in lost for number in tail)

    for record in disk.journal:
        name = str(record.subject.get("experiment", ""))
        match record.action:
            case "round.planned":
                key = RoundKey.parse(str(record.subject["round"]))
                if key.number > newest[key.experiment] and due(key.experiment):
                    yield Violation("limits", f"round {key} was planned after {limits[key.experiment]} lost ones in a row")
                newest[key.experiment] = key.number
            case "experiment.resumed":
                forgiven[name] = newest[name]
            case "experiment.paused" if record.who == SYSTEM and not due(name):
                yield Violation(
                    "limits", f"{name} rests after round {newest[name]}, not after {limits[name]} lost ones in a row"
                )


def files_are_there(disk: Disk) -> Iterator[Violation]:
    """What rows refer to exists: the files of kept models, the updates of open rounds, the manifests of judged tasks."""
    for model in disk.models:
        for part in model.parts - disk.blobs:
            yield Violation("byte-lost", f"the file {part[:12]} of model {_round_of(model)} is gone")
    detailed = {row.round for row in disk.events}
    for state in disk.rounds:
        for task in state.tasks:
            name = state.task_key(task.site)
            if task.state in {TaskState.RECEIVED, TaskState.ADMITTED}:
                if not state.ended and task.weights not in disk.blobs:
                    yield Violation("byte-lost", f"the update of {name} is {task.state}, and its file is gone")
                unsigned = disk.receipts is not None and (task.weights or "", name) not in disk.receipts
                if not state.ended and unsigned:
                    yield Violation("byte-lost", f"the receipt for the update of {name} is gone")
                if state.key in detailed and disk.updates.get(task.manifest or "") != name:
                    yield Violation("byte-lost", f"the manifest of {name} is gone, or another task's")


def nothing_is_stuck(disk: Disk) -> Iterator[Violation]:
    for state in disk.rounds:
        if not state.ended:
            yield Violation(
                "stuck", f"round {state.key} is still {state.state}: {[str(task.state) for task in state.tasks]}"
            )
    for trial in disk.trials:
        if trial.state in {"draft", "running", "paused"}:
            yield Violation("stuck", f"experiment {trial.name} is still {trial.state}")


def _by_experiment(disk: Disk) -> dict[str, list[Round]]:
    found: dict[str, list[Round]] = defaultdict(list)
    for state in sorted(disk.rounds, key=lambda state: state.key):
        found[state.key.experiment].append(state)
    return found


def _round_of(model: ModelFact) -> str:
    return f"{model.experiment}/{model.round}"


def _files(pairs: Iterable[tuple[str, str | None]]) -> str:
    return ", ".join(f"{site} {(weights or '-')[:8]}" for site, weights in sorted(pairs, key=str)) or "none"
