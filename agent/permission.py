"""What a site answers to an offer: the experiment as it understands it, and the hospital's decision, both journalled.

The consent file is read for every offer, so that what a hospital takes back holds from the next one. One that cannot be read
for a moment is no answer: it is read again, and then the attempt fails, for a later one. `agent/work.py` is the caller.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from agent.config import AgentConfig
from agent.consent import Decision, decide, policy_of_now
from agent.desk import Desk
from agent.handover import about, spoken
from agent.offers import Offer
from histofed.base.errors import BadData, ConfigError
from histofed.base.experiment import Experiment, parse_experiment
from histofed.base.ids import sha256
from histofed.recipes.registry import recipe
from histofed.telemetry import attributes as names
from histofed.transport.backoff import retry
from histofed.transport.blobs import TRANSFER

log = logging.getLogger(__name__)


async def ask(offer: Offer, config: Callable[[], AgentConfig], desk: Desk) -> tuple[Experiment | None, Decision]:
    """The experiment, None where this site cannot run it, and whether the hospital allows it; told to the journal.

    Raises `Unreadable` when the consent file could not be read for a while.
    """

    async def answer() -> tuple[Experiment | None, Decision]:
        return _decide(offer, config())

    with desk.tracing.span(names.TASK_CONSENT, about(offer.task, offer.attempt), parent=offer.trace) as span:
        experiment, decision = await retry(
            answer, what="reading the consent file", backoff=TRANSFER, clock=desk.clock, random=desk.random
        )
        desk.journal.append(
            "consent.allowed" if decision.allowed else "consent.denied",
            subject={**spoken(offer.task, offer.attempt), "policy_sha256": decision.policy_sha256},
            outcome="success" if decision.allowed else "refused",
            reason=decision.reason,
            trace=span.context,
        )
        span.outcome("ok" if decision.allowed else "declined")
    return experiment, decision


def _decide(offer: Offer, config: AgentConfig) -> tuple[Experiment | None, Decision]:
    try:
        policy = policy_of_now(config.consent)
    except ConfigError as error:
        log.error("nothing is allowed until this is repaired: %s", error)
        words = "the consent file of this site cannot be read, so nothing is allowed; its administrator finds why in the log"
        return None, Decision(False, words, sha256(b""))
    try:
        experiment = parse_experiment(offer.experiment_toml)
        demands = recipe(experiment.file.recipe).demands(experiment.file.recipe_config)
    except BadData as error:
        return None, Decision(False, f"this site cannot run the experiment: {error}", policy.sha256)
    decision = decide(policy, experiment, demands)
    if decision.allowed and demands.image_size is not None and config.data.root is None:
        return None, Decision(False, "this site has no tiles: its agent's [data] root is not set", policy.sha256)
    return experiment, decision
