"""Another configuration, planned: what it would do to instances, and doing exactly that."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from compose.live_files import file_yard
from gateway.live_yard import MB, SHARE, fake
from modelyard.compose.preparing import Preparing
from modelyard.errors import ConfigError
from modelyard.gateway.kept_plans import KEPT
from waiting import until

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


async def test_what_no_instance_feels_has_to_be_as_planned_too() -> None:
    keys = [{"name": name, "key": f"{name}-secret", "scopes": ["inference", "admin"]} for name in "ab"]
    async with file_yard({"a": fake()}, keys=keys[:1]) as yard:
        yard.http.headers["authorization"] = "Bearer a-secret"
        yard.write({"a": fake(aliases=["x"])})
        plan = (await yard.post("/admin/plan", {"config": {}})).body["id"]
        for other in ({}, {"keys": keys}, {"defaults": {"max_wait": "7s"}}, {"preload": ["a"]}):
            aliases = ["x"] if other else ["y"]
            yard.write({"a": fake(aliases=aliases)}, **other)
            stale = await yard.post("/admin/apply-plan", {"id": plan})
            assert (stale.status, stale.code) == (409, "plan_stale"), other
        yard.http.headers["authorization"] = "Bearer b-secret"
        assert (await yard.http.get("/v1/models")).status_code == 401
        yard.http.headers["authorization"] = "Bearer a-secret"
        yard.write({"a": fake(aliases=["x"])})
        assert (await yard.post("/admin/apply-plan", {"id": plan})).status == 200
        assert (await yard.chat("x")).status == 200


async def test_two_plans_that_do_the_same_to_instances_are_two() -> None:
    async with file_yard({"a": fake()}) as yard:
        plans = []
        for alias in "xy":
            yard.write({"a": fake(aliases=[alias])})
            plans.append((await yard.post("/admin/plan", {"config": {}})).body["id"])
        assert plans[0] != plans[1]
        assert (await yard.post("/admin/apply-plan", {"id": plans[0]})).code == "plan_stale"
        assert (await yard.post("/admin/apply-plan", {"id": plans[1]})).status == 200


async def test_a_plan_that_could_not_be_carried_out_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async with file_yard({"a": fake()}) as yard:
        yard.write({"a": fake(), "b": fake()})
        plan = (await yard.post("/admin/plan", {"config": {}})).body["id"]

        def refuse(self: Preparing, prepared: object) -> None:
            raise ConfigError("devices.gpu0.memory", "is held")

        with monkeypatch.context() as patch:
            patch.setattr(Preparing, "check_held", refuse)
            refused = await yard.post("/admin/apply-plan", {"id": plan})
            assert refused.code == "config_refused"
        assert (await yard.post("/admin/apply-plan", {"id": plan})).status == 200


async def test_a_change_needs_no_plan_and_takes_the_place_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async with file_yard({"a": fake(), "c": fake()}) as yard:
        plan = (await yard.post("/admin/plan", {"load": {"model": "c"}})).body["id"]
        for number in range(KEPT):
            yard.write({"a": fake(keep_alive=f"{60 + number}s"), "c": fake()})
            assert (await yard.apply()).body["plan"]["steps"] == []
        assert (await yard.post("/admin/apply-plan", {"id": plan})).status == 200

        def fail(*_: object, **__: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("modelyard.gateway.kept_plans.plan", fail)
        with capture_logs() as logs:
            answer = await yard.change({"a": fake(), "b": fake(), "c": fake()})
        assert (answer.status, answer.body["plan"]) == (200, None)
        assert "plan.failed" in [line["event"] for line in logs]
        assert yard.knows(3)


async def test_an_order_of_two_things_is_none() -> None:
    async with file_yard({"a": fake()}) as yard:
        assert (await yard.post("/admin/plan", {"config": {}, "load": {"model": "a"}})).status == 400
