"""`run.json`: what was run, without anything that names anybody."""

from __future__ import annotations

import json

from tests.unit.recipes.gan.conftest import Runner, stretches


def test_the_record_says_what_was_run_and_nothing_that_names_anybody(run: Runner) -> None:
    record = run(seed=5)
    assert (record["seed"], record["preset"], record["paper"]) == (5, None, False)
    assert record["not_the_papers"] == ["the settings are not a preset of the paper"]
    recipe, rules, data = record["recipe"], record["rules"], record["data"]
    assert isinstance(recipe, dict)
    assert isinstance(rules, dict)
    assert isinstance(data, dict)
    assert (recipe["batch"], recipe["generator_rate"], rules["heads"]) == (4, 2e-4, "class")
    names = [path.name for path in run.data.glob("*/*")]
    assert data["tiles"] == len(names)
    assert [one["name"] for one in data["classes"]] == ["MSIH", "nonMSIH"]
    (stretch,) = stretches(record)
    assert (stretch["from_step"], stretch["to_step"], stretch["threads"]) == (0, 6, 1)
    text = json.dumps(record)
    assert str(run.data) not in text
    assert "TCGA-" not in text


def test_another_torch_or_number_of_threads_is_told(run: Runner) -> None:
    run(steps=4, max_steps=2)
    path = run.folder / "out" / "run.json"
    record = json.loads(path.read_bytes())
    record["stretches"][0]["torch"] = "1.0"
    path.write_text(json.dumps(record))
    assert run(steps=4)["notes"] == ["went on with other torch: not bit for bit the run that was never stopped"]
