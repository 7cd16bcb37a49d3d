"""What a site keeps from one task to the next: it counts only what was committed, and goes with its experiment."""

from __future__ import annotations

from agent.tensors import AT_ONCE
from histofed import __version__, weights
from histofed.base.clock import SystemClock, iso
from histofed.v1 import rounds_pb2
from tests.support.agent_site import AgentSite, task
from tests.support.fake_aggregator import FakeAggregator


async def test_private_tensors_advance_only_with_a_committed_round(site: AgentSite, aggregator: FakeAggregator) -> None:
    async def train(number: int, settled: int) -> tuple[int, float]:
        aggregator.offer(aggregator.make_offer(task(number), settled_round=settled))
        await aggregator.wait_for("SubmitUpdate", number)
        pending = site.layout.private / "pilot" / f"{number}.safetensors"
        return aggregator.manifests()[-1].private_round, float(weights.read(pending)["mean.steps"][0])

    site.start()
    assert await train(1, 0) == (0, 3)
    # round 1 was committed with this site's update: its private tensors count on
    assert await train(2, 1) == (1, 6)
    # round 2 was not: training begins once more where round 1 ended
    assert await train(3, 1) == (1, 6)
    assert sorted(path.name for path in (site.layout.private / "pilot").iterdir()) == ["1.safetensors", "3.safetensors"]


async def test_tensors_of_an_ended_experiment_are_forgotten(site: AgentSite, aggregator: FakeAggregator) -> None:
    for experiment in ("going-on", "over"):
        (site.layout.private / experiment).mkdir()
        (site.layout.private / experiment / "1.safetensors").write_bytes(b"moments")
    for experiment in ("over", "only-a-base"):
        (site.layout.bases / experiment).mkdir()
    for room in ("over.2.train", "half-done.1.train"):
        (site.layout.work / room).mkdir()
    greeting = rounds_pb2.HelloResponse(
        version=__version__, identity="", now=iso(SystemClock().now()), ended_experiments=["over", "of-another-site"]
    )
    aggregator.answers["Hello"] = [greeting]
    site.start()
    await aggregator.wait_for("WaitForWork")
    asked = aggregator.heard[0]
    assert list(asked.request.experiments) == ["going-on", "half-done", "only-a-base", "over"]
    assert [path.name for path in sorted(site.layout.private.iterdir())] == ["going-on"]
    assert [path.name for path in sorted(site.layout.bases.iterdir())] == ["only-a-base"]
    assert [path.name for path in sorted(site.layout.work.iterdir())] == ["half-done.1.train"]
    (forgotten,) = [record for record in site.audit() if record.action == "private.forgotten"]
    assert forgotten.subject == {"experiment": "over"}


async def test_a_site_that_keeps_more_than_one_hello_may_name_asks_about_all_in_turn(
    site: AgentSite, aggregator: FakeAggregator
) -> None:
    names = [f"e{number:04d}" for number in range(AT_ONCE + 200)]
    for name in names:
        (site.layout.bases / name).mkdir()
    (site.layout.private / names[-1]).mkdir()
    over = rounds_pb2.HelloResponse(
        version=__version__, identity="", now=iso(SystemClock().now()), ended_experiments=[names[-1]]
    )
    site.start()
    first = await aggregator.wait_for("Hello")
    assert list(first.request.experiments) == names[:AT_ONCE]
    await aggregator.wait_for("WaitForWork")
    aggregator.answers["Hello"] = [over]
    aggregator.hang_up()
    second = await aggregator.wait_for("Hello", 2)
    assert list(second.request.experiments) == names[AT_ONCE:] + names[: AT_ONCE - 200]
    await aggregator.wait_for("WaitForWork", 2)
    assert not (site.layout.private / names[-1]).exists()
