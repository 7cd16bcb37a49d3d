"""The keys of `--json` are a promise to operators' scripts: a change here is a change of the interface."""

from __future__ import annotations

import json

from histofed.cli.views import Model, Part, Site, Status, Token, document, round_in_list
from tests.support.operator_views import committed_round, experiment, open_round, sight, task


def words(text: str) -> set[str]:
    return set(text.split())


def keys(value: object) -> set[str]:
    found = json.loads(json.dumps(value))
    assert isinstance(found, dict)
    return set(found)


def test_a_round_in_a_list_has_the_promised_keys() -> None:
    found = round_in_list(committed_round(1, "north", "west"))

    promised = "experiment round state sampled admitted refused model_digest opened_at committed_at"
    assert words(promised) <= keys(found)
    assert keys(found) == words(promised) | {"reason", "eligible", "base_digest", "deadline", "metrics", "quorum", "enough"}


def test_a_round_with_its_tasks_adds_them() -> None:
    found = document(open_round(1, task("north")))

    assert keys(found) - keys(round_in_list(open_round(1))) == {"tasks"}
    (only,) = json.loads(json.dumps(found))["tasks"]
    assert set(only) == words("site kind state reason attempt phase done total losses rate update_bytes")


def test_what_has_not_happened_is_null() -> None:
    found = round_in_list(open_round(1))

    assert found["committed_at"] is None
    assert found["model_digest"] is None


def test_the_other_documents_have_their_keys() -> None:
    status = Status("1", "f", "now", "then", 1, 2, 3, (), (experiment(),))
    assert keys(document(status)) == words(
        "version federation now started_at sites_connected sites_enrolled journal_records journal_head conditions "
        "experiments"
    )
    assert keys(document(experiment())) == words(
        "name recipe state reason rounds rounds_committed sha256 submitted_by created_at ended_at model_digest open_round"
    )
    assert keys(document(Site("a", True, None, None, "", None, 0))) == words(
        "name connected enrolled_at last_seen_at version certificate_expires_at updates_admitted"
    )
    model = Model("ab", "demo", 1, "candidate", (Part("shared", "ab", 1, False),), None)
    assert keys(document(model)) == words("digest experiment round state parts created_at removed_at")
    assert keys(json.loads(json.dumps(document(model)))["parts"][0]) == words("name sha256 bytes release")
    assert keys(document(Token("a", "line", "then"))) == {"site", "join_line", "expires_at"}
    assert keys(document(sight(None))) == {"experiment", "round"}
