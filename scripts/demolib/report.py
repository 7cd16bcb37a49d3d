"""demo/report.html: what ran and what came out, in one file without links to anything else.

Made from the `--json` documents of the operator's commands; nothing of the tiles is in it but what the generator drew.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from .chart import line_chart
from .layout import Layout

STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Facts:
    """The documents that the report is made of."""

    experiment: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    sites: Sequence[Mapping[str, Any]]
    status: Mapping[str, Any]
    verified: Mapping[str, Any]
    sheets: Mapping[int, Path]
    """By round; 0 is the model before any training."""
    data: str
    seconds: float


def write_report(facts: Facts, layout: Layout) -> None:
    """Write the file."""
    layout.report.write_text(render(facts), encoding="utf-8")


def render(facts: Facts) -> str:
    """The page."""
    experiment = facts.experiment["experiment"]
    sections = [
        _summary(facts),
        _section("What the generator draws", _sheets(facts)),
        _section("Rounds", _rounds(facts.rounds) + _losses(facts.rounds)),
        _section("The model", _model(facts)),
        _section("Hospitals", _sites(facts)),
        _section("The experiment file", f"<pre>{escape(facts.experiment['toml'].strip())}</pre>"),
        _section("Where everything is", _places()),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>histofed: {escape(experiment['name'])}</title><style>{STYLE}</style></head><body><main>"
        + "".join(sections)
        + "</main></body></html>\n"
    )


def _summary(facts: Facts) -> str:
    experiment = facts.experiment["experiment"]
    committed = [one for one in facts.rounds if one["state"] == "committed"]
    moved = sum(task["update_bytes"] for one in facts.rounds for task in one["tasks"])
    tiles = [
        ("hospitals", str(len(facts.sites))),
        ("rounds committed", f"{len(committed)} of {experiment['rounds']}"),
        ("updates averaged", str(sum(len(one["admitted"]) for one in committed))),
        ("updates sent", _size(moved)),
        ("audit records", str(facts.status["journal_records"])),
        ("minutes, all in all", f"{facts.seconds / 60:.1f}"),
    ]
    cards = "".join(f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in tiles)
    return (
        f'<header><p class="kicker">histofed {escape(facts.status["version"])}</p>'
        f"<h1>Four hospitals trained one generator together</h1>"
        f"<p>Experiment <code>{escape(experiment['name'])}</code> on this machine: one aggregator and four agents as "
        f"separate processes, mutual TLS 1.3 between them, {escape(facts.data)}. What left a hospital were signed weights. "
        f'It is <b class="{escape(experiment["state"])}">{escape(experiment["state"])}</b>.</p></header>'
        f'<div class="cards">{cards}</div>'
    )


def _sheets(facts: Facts) -> str:
    figures = []
    for number, path in sorted(facts.sheets.items(), reverse=True):
        name = f"Round {number}" if number else "Before training"
        data = base64.b64encode(path.read_bytes()).decode()
        figures.append(
            f'<figure><figcaption>{name}</figcaption><img alt="{name}: generated tiles, a row per class" '
            f'src="data:image/png;base64,{data}"></figure>'
        )
    return "<p>Rows are classes, columns the same noise in every round.</p>" + "".join(figures)


def _rounds(rounds: Sequence[Mapping[str, Any]]) -> str:
    names = sorted({name for one in rounds for name in one["metrics"]})
    rows = []
    for one in rounds:
        refused = "; ".join(f"{refusal['site']}: {refusal['reason']}" for refusal in one["refused"]) or one["reason"]
        rows.append(
            [
                str(one["round"]),
                _word(one["state"]),
                escape(", ".join(one["sampled"])),
                f"{len(one['admitted'])} of {len(one['sampled'])}",
                *(f"{one['metrics'][name]:.3f}" if name in one["metrics"] else "-" for name in names),
                _seconds(one["opened_at"], one["committed_at"]),
                _size(sum(task["update_bytes"] for task in one["tasks"])),
                escape(refused),
            ]
        )
    losses = [escape(name.replace("_", " ")) for name in names]
    return _table(["Round", "State", "Sampled", "Admitted", *losses, "Seconds", "Updates", "Refused"], rows)


def _losses(rounds: Sequence[Mapping[str, Any]]) -> str:
    series: dict[str, list[tuple[int, float]]] = {}
    for one in rounds:
        for name, value in one["metrics"].items():
            if name.endswith("_loss"):
                series.setdefault(name.removesuffix("_loss"), []).append((one["round"], value))
    return f"<h3>Mean losses by round</h3>{line_chart(series, 'Mean losses by round')}" if series else ""


def _model(facts: Facts) -> str:
    verified, statement = facts.verified, facts.verified["statement"]
    rows = [
        ["Model", f"<code>{escape(verified['model'])}</code>"],
        ["Signature", '<b class="committed">verified</b> against the federation\'s CA, and the file against its SHA-256'],
        ["File", f"part <code>{escape(verified['part'])}</code>, {_size(verified['bytes'])}"],
        ["SHA-256", f"<code>{escape(verified['sha256'])}</code>"],
        [
            "From",
            f"experiment {escape(statement['experiment'])}, round {statement['round']}, {escape(statement['strategy'])}",
        ],
        [
            "Updates in it",
            escape(", ".join(f"{one['site']} {100 * one['weight']:.1f} %" for one in statement["contributions"])),
        ],
        ["Before it", f"<code>{escape(statement['base'])}</code>"],
    ]
    check = "histofed models verify demo/model.safetensors --ca demo/ca.crt"
    return _table([], rows) + f"<p>Verify it anywhere, without a network: <code>{check}</code></p>"


def _sites(facts: Facts) -> str:
    took_part = {
        site["name"]: [str(one["round"]) for one in facts.rounds if site["name"] in one["admitted"]] for site in facts.sites
    }
    rows = [
        [
            escape(site["name"]),
            escape(", ".join(took_part[site["name"]]) or "-"),
            str(site["updates_admitted"]),
            escape(site["version"]),
            escape((site["certificate_expires_at"] or "-")[:10]),
        ]
        for site in facts.sites
    ]
    return _table(["Hospital", "Rounds", "Updates admitted", "Agent", "Certificate until"], rows)


def _places() -> str:
    rows = [
        ["<code>demo/model.safetensors</code>", "the released generator, and its signed statement beside it"],
        ["<code>demo/samples/</code>", "the sample sheets above"],
        [
            "<code>demo/operator.toml</code>",
            "for <code>histofed --config demo/operator.toml rounds list</code>, after <code>make demo-up</code>",
        ],
        [
            "<code>demo/aggregator/log</code>, <code>state/</code>",
            "the aggregator's log, its rounds, models and audit journal",
        ],
        ["<code>demo/sites/NAME/log</code>, <code>state/</code>", "one hospital's log, key, outbox and audit journal"],
        ["<code>demo/sites/NAME/consent.toml</code>", "what this hospital allows"],
    ]
    return _table([], rows)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table>{f"<thead><tr>{head}</tr></thead>" if head else ""}<tbody>{body}</tbody></table></div>'
    )


def _word(state: str) -> str:
    return f'<b class="{escape(state)}">{escape(state)}</b>'


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def _seconds(begin: str | None, end: str | None) -> str:
    if not begin or not end:
        return "-"
    return f"{(datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds():.0f}"
