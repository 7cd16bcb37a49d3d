"""Trace contexts: W3C's text form, and the identity of a round."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.errors import BadData
from histofed.telemetry.context import TraceContext, round_parent

W3C = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_the_example_of_the_recommendation_is_read() -> None:
    context = TraceContext.parse(W3C)
    assert (context.trace_id, context.span_id) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert context.traceparent == W3C


def test_a_later_version_with_more_fields_is_read() -> None:
    assert TraceContext.parse("01" + W3C[2:] + "-more").traceparent == W3C


@pytest.mark.parametrize(
    "text",
    [
        "",
        W3C.upper(),
        W3C + "-more",
        W3C + "\n",
        "ff" + W3C[2:],
        W3C.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        W3C.replace("b7ad6b7169203331", "0" * 16),
        W3C[:-1],
        "TCGA-AA-3488-01Z-00-DX1",
    ],
)
def test_what_is_no_context_is_refused(text: str) -> None:
    with pytest.raises(BadData):
        TraceContext.parse(text)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        context = TraceContext.parse(text)
    except BadData:
        return
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", context.traceparent)


@given(st.text(max_size=40), st.integers(0, 2**40))
def test_a_round_names_its_own_trace(experiment: str, number: int) -> None:
    parent = round_parent(experiment, number)
    assert parent == round_parent(experiment, number)
    assert TraceContext.parse(parent.traceparent) == parent
    assert parent.trace_id != round_parent(experiment, number + 1).trace_id
    assert parent.trace_id != round_parent(experiment + "x", number).trace_id


def test_a_rounds_trace_does_not_change_between_releases() -> None:
    assert round_parent("crc", 1).traceparent == "00-18121dcb84a31de86f96275a2d74f6a2-ea5ac0123d07fa9c-01"


def test_a_child_stays_in_the_trace() -> None:
    parent = TraceContext.new()
    child = parent.child()
    assert child.trace_id == parent.trace_id
    assert child.span_id != parent.span_id
    assert TraceContext.new().trace_id != parent.trace_id
