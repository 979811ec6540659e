"""Another configuration, planned: what it would do to instances, and doing exactly that."""

from __future__ import annotations

from typing import Any

from compose.live_files import file_yard
from gateway.live_yard import MB, SHARE, fake, until

Json = dict[str, Any]


def told(plan: Json) -> list[tuple[str, str]]:
    return [(step["does"], step["instance"] or step["model"]) for step in plan["steps"]]


async def test_a_planned_change_is_told_with_its_steps_and_nothing_happens() -> None:
    async with file_yard({"a": fake(), "b": fake(), "c": fake()}) as yard:
        await yard.load("a")
        await yard.load("b")
        yard.write({"a": fake(7 * MB), "b": fake(pin=True), "d": fake()})
        dry = (await yard.apply(dry_run=True)).body["plan"]
        planned = (await yard.post("/admin/plan", {"config": {}})).body
        assert planned["order"] == dry["order"] == f"serve {yard.path}"
        assert told(dry) == told(planned)
        assert told(planned)[:2] == [("leave", "a-1"), ("gone", "a-1")]
        assert planned["steps"][0]["reason"].startswith("replaced by a@")
        assert yard.knows(3)
        assert (yard.state.sequence, yard.notes("leave")) == (2, [])


async def test_what_is_done_is_what_was_planned() -> None:
    async with file_yard({"a": fake(), "b": fake()}) as yard:
        await yard.load("a")
        await yard.load("b")
        yard.write({"a": fake(slots=2), "c": fake()})
        planned = (await yard.post("/admin/plan", {"config": {}})).body
        done = await yard.post("/admin/apply-plan", {"id": planned["id"]})
        assert (done.status, done.body["done"], done.body["order"]) == (200, True, planned["order"])
        await until(lambda: yard.ready("a"))
        await until(lambda: len(yard.state.instances) == 1)
        assert sorted(told(planned)) == [
            ("gone", "a-1"),
            ("gone", "b-2"),
            ("leave", "a-1"),
            ("leave", "b-2"),
            ("ready", "a"),
            ("start", "a"),
        ]
        assert (yard.state.sequence, yard.reserved()) == (3, SHARE)
        again = await yard.post("/admin/apply-plan", {"id": planned["id"]})
        assert again.code == "plan_not_found"


async def test_a_plan_is_stale_when_the_file_or_the_yard_is_another() -> None:
    async with file_yard({"a": fake(), "b": fake()}) as yard:
        await yard.load("a")
        yard.write({"a": fake(slots=2), "b": fake()})
        plan = (await yard.post("/admin/plan", {"config": {}})).body["id"]
        yard.write({"a": fake(slots=3), "b": fake()})
        stale = await yard.post("/admin/apply-plan", {"id": plan})
        assert (stale.status, stale.code) == (409, "plan_stale")
        assert f"what {yard.path} says, or what is served, has changed" in stale.message
        yard.write({"a": fake(slots=2), "b": fake()})
        async with yard.open_stream("a", tokens=20, fake={"tokens_per_second": 50}) as (_, more):
            await anext(more)
            stale = await yard.post("/admin/apply-plan", {"id": plan})
            assert stale.code == "plan_stale"
            assert "a-1: was idle" in stale.message
            async for _ in more:
                pass
        assert [entry.spec.slots for entry in yard.yard.names.all()] == [1, 1]
        assert not yard.notes("leave")
        await yard.settled()
        assert (await yard.post("/admin/apply-plan", {"id": plan})).status == 200
        assert [entry.spec.slots for entry in yard.yard.names.all()] == [2, 1]


async def test_what_cannot_be_served_cannot_be_planned() -> None:
    async with file_yard({"a": fake()}) as yard:
        yard.write({"a": fake(11 * MB)})
        answer = await yard.post("/admin/plan", {"config": {"path": str(yard.path)}})
        assert (answer.status, answer.code) == (400, "config_refused")
        assert yard.problem == "", "it was only asked"
        assert (await yard.post("/admin/plan", {"config": {}, "load": {"model": "a"}})).status == 400
