"""One trace per round over all processes, at a real collector over mutual TLS, with nothing in it that names a patient."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import pytest

from histofed.telemetry import attributes as names
from histofed.telemetry.context import round_parent
from tests.support.federation import Federation
from tests.support.hospitals import SITES
from tests.support.otlp import OtlpReceiver, ReceivedSpan

ONCE = {names.ROUND_SAMPLE, names.ROUND_AGGREGATE, names.ROUND_COMMIT}
BEFORE = {names.TASK_OFFER, names.TASK_CONSENT, names.TASK_DOWNLOAD, names.TASK_TRAIN}
AFTER = {names.TASK_UPLOAD, names.TASK_ADMIT}
STEPS = dict.fromkeys(("east", "north"), BEFORE | AFTER) | dict.fromkeys(("south", "west"), BEFORE)
"""What happens for each site; two of them cannot train on the tiles they have."""
WHOLE = len(ONCE) + sum(len(steps) for steps in STEPS.values())


@pytest.fixture(scope="module")
def spans(generated: dict[str, Any], collector: OtlpReceiver) -> list[ReceivedSpan]:
    """Every span of the round that read tiles."""
    trace = round_parent("acgan", 1).trace_id

    def mine(all_spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
        return [span for span in all_spans if span.trace_id == trace]

    return mine(collector.wait_until(lambda all_spans: len(mine(all_spans)) >= WHOLE, 30.0))


def test_a_round_is_one_trace_over_all_services(spans: list[ReceivedSpan]) -> None:
    assert len(spans) == WHOLE
    services = defaultdict(set)
    for span in spans:
        services[span.resource["service.name"]].add(span.name)
    here = ONCE | {names.TASK_OFFER, names.TASK_ADMIT}
    assert services == {"histofed-aggregator": here, "histofed-agent": (BEFORE | AFTER) - here}
    senders = {span.sender for span in spans}
    assert senders == {"aggregator", *SITES}, "each process shows the collector a certificate of its own"


def test_each_site_has_every_step(spans: list[ReceivedSpan]) -> None:
    for site, steps in STEPS.items():
        assert sorted(span.name for span in spans if span.attributes.get(names.SITE_ID) == site) == sorted(steps)


def test_spans_hang_together(spans: list[ReceivedSpan]) -> None:
    root = round_parent("acgan", 1).span_id
    known = {span.span_id for span in spans}
    assert root in known, "the round's first span is the parent that every process derives"
    assert {span.parent_id for span in spans} - {""} <= known
    assert [span.name for span in spans if not span.parent_id] == [names.ROUND_SAMPLE]


def test_spans_say_how_it_ended_and_never_why(spans: list[ReceivedSpan]) -> None:
    training = {span.attributes[names.SITE_ID]: span for span in spans if span.name == names.TASK_TRAIN}
    for site in ("east", "north"):
        assert training[site].attributes[names.OUTCOME] == "ok"
        assert training[site].attributes[names.STEPS] == 2
        assert training[site].attributes[names.TILES_BUCKET] in names.TILES_BUCKETS
    for site, error in {"south": "BadData", "west": "TooFewPatients"}.items():
        assert training[site].attributes[names.OUTCOME] == "failed"
        assert training[site].attributes[names.ERROR_TYPE] == error
    assert {span.status_message for span in spans} == {""}
    assert not any(span.events for span in spans), "an exception's text would be an event"
    committed = next(span for span in spans if span.name == names.ROUND_COMMIT)
    assert re.fullmatch(r"[0-9a-f]{64}", str(committed.attributes[names.MODEL_DIGEST]))


def test_nothing_outside_the_allow_list_leaves(spans: list[ReceivedSpan], collector: OtlpReceiver) -> None:
    for span in collector.spans:
        assert set(span.attributes) <= set(names.ATTRIBUTES)
        assert set(span.resource) <= set(names.RESOURCE)
        assert span.name in names.SPANS


def test_no_byte_names_a_patient_a_file_or_a_path(
    healthy: Federation, spans: list[ReceivedSpan], collector: OtlpReceiver
) -> None:
    sent = b"".join(collector.raw)
    forbidden = [str(healthy.folder), "TCGA-", ".jpg", ".png", ".safetensors", ".toml", "/state", "Traceback"]
    assert [word for word in forbidden if word.encode() in sent] == []
    assert b"acgan" in sent, "this looks at the right bytes"
