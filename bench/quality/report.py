"""What the runs found, as a page for `docs/results`: a table per mark that all runs reached, curves, and the sheets."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.quality import yardsticks
from bench.quality.curves import draw_curves
from bench.quality.judge import HELD_OUT, NETS
from bench.quality.recipes import NAMES, settings_of

Curve = list[dict[str, Any]]
TARGET: Final = 0.6
"""Distance of `default` over the paper's."""


def write_report(out: Path, target: Path) -> None:
    """Write `quality.md`, `quality.svg`, `quality.json` and a sheet per run. Raises `SystemExit` when too little has run."""
    curves = {name: _curves(out, name) for name in NAMES}
    seeds = sorted(set.intersection(*(set(found) for found in curves.values())))
    marks = [{row["mark"] for row in curves[name][seed]} for name in NAMES for seed in seeds]
    common = sorted(set.intersection(*marks)) if marks else []
    if not common:
        raise SystemExit("no mark was reached by both recipes with the same seed yet; run `python -m bench.quality run`")
    last = common[-1]
    at_last = {name: [_at(curves[name][seed], last) for seed in seeds] for name in NAMES}
    real = yardsticks.read(out)
    target.mkdir(parents=True, exist_ok=True)
    (target / "quality.svg").write_text(draw_curves(curves, seeds), encoding="utf-8")
    (target / "quality.json").write_text(json.dumps({"real": real, "curves": curves}, indent=1) + "\n")
    for name in NAMES:
        shutil.copy(out / f"{name}-{seeds[0]}" / f"sheet-{last:02g}.png", target / f"quality-{name}.png")
    (target / "quality.md").write_text(_page(at_last, seeds, last, real), encoding="utf-8")
    print((target / "quality.md").read_text())


def _curves(out: Path, name: str) -> dict[int, Curve]:
    found = sorted(out.glob(f"{name}-*/curve.json"))
    return {int(path.parent.name.rpartition("-")[2]): json.loads(path.read_text()) for path in found}


def _at(curve: Curve, mark: float) -> dict[str, Any]:
    return next(row for row in curve if row["mark"] == mark)


def _page(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], seeds: Sequence[int], mark: float, real: Mapping[str, Any]
) -> str:
    lines = [
        "# `default` against the paper's recipe, on real tiles",
        "",
        f"Measured after {mark:g} CPU-minutes of training per run, {len(seeds)} seeds, 64 px, random weights, the same",
        f"small ViT as discriminator. Held-out patients ({HELD_OUT:.0%} of each class) are the reference of the",
        "distance and the test of the probe; no network ever sees them. Written by `python -m bench.quality report`;",
        "the runs are made by `python -m bench.quality run`.",
        "",
        "Neither side is its preset as it ships. What was changed in each:",
        "",
        *(f"- `{name}`: {'; '.join(settings_of(name, {}).departures)}." for name in ("default", "paper")),
        "",
        "How these values were found, and why that favours `default`: [README.md](README.md).",
        "",
        "Fréchet distance to the held-out patients' tiles, lower is better; the nets are not FID's, so nothing here is a",
        "FID:",
        "",
        "| features | seed | `default` | paper's | ratio | real training tiles |",
        "|---|---|---|---|---|---|",
    ]
    verdict: list[str] = []
    for net in NETS:
        pairs = [(_number(a, "frechet_distance", net), _number(b, "frechet_distance", net)) for a, b in _paired(rows)]
        floor = real["frechet_distance"][net]
        for seed, (ours, paper) in zip(seeds, pairs, strict=True):
            lines.append(f"| {net} | {seed} | {ours:.0f} | {paper:.0f} | {ours / paper:.2f} | {floor:.0f} |")
        ratio = statistics.mean(a for a, _ in pairs) / statistics.mean(b for _, b in pairs)
        met = "met" if ratio <= TARGET else "missed"
        verdict.append(f"- {net}: mean distance {ratio:.2f} x the paper's (target at most {TARGET}: {met}).")
    lines += [
        "",
        *verdict,
        "",
        "What that asks for. Real tiles of the training patients, spoiled in ways that anyone can see, against the same",
        "held-out tiles:",
        "",
        *_yardsticks(rows["paper"], real),
        "",
        "Linear probe trained on generated tiles alone, balanced accuracy on held-out patients' tiles:",
        "",
    ]
    lines += ["| features | `default` | paper's | real training tiles | always one class |", "|---|---|---|---|---|"]
    for net in NETS:
        probes = [_mean([_number(row, "balanced_accuracy", net) for row in rows[name]]) for name in ("default", "paper")]
        lines.append(f"| {net} | {probes[0]} | {probes[1]} | {real['balanced_accuracy'][net]:.3f} | 0.500 |")
    lines += ["", "Mean and range over the seeds.", "", "![Curves](quality.svg)", ""]
    for name in NAMES:
        steps = ", ".join(str(row["steps"]) for row in rows[name])
        lines += [f"`{name}`, seed {seeds[0]} (steps per seed: {steps}):", "", f"![Samples](quality-{name}.png)", ""]
    return "\n".join(lines)


def _yardsticks(paper: Sequence[Mapping[str, Any]], real: Mapping[str, Any]) -> list[str]:
    """A table of the target in absolute numbers beside what real tiles score."""
    targets = {net: TARGET * statistics.mean(_number(row, "frechet_distance", net) for row in paper) for net in NETS}
    found = {"whole": real["frechet_distance"], f"the target, {TARGET} x the paper's": targets, **real["spoiled"]}
    rows = (f"| {name} | " + " | ".join(f"{distances[net]:.0f}" for net in NETS) + " |" for name, distances in found.items())
    return ["| real tiles | " + " | ".join(NETS) + " |", "|---" * (1 + len(NETS)) + "|", *rows]


def _paired(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return list(zip(rows["default"], rows["paper"], strict=True))


def _number(row: Mapping[str, Any], what: str, net: str) -> float:
    return float(row[what][net])


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
