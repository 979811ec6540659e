"""Plans over HTTP: what an order would do, doing exactly that, and a plan that went stale."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.live_yard import LiveYard, fake, live_yard
from gateway.test_access import KEYS, USER, bearer
from gateway.test_clients import hold
from gateway.test_explain import explained
from modelyard.gateway.kept_plans import KEPT
from waiting import until

Json = dict[str, Any]


@pytest.fixture
async def yard() -> AsyncIterator[LiveYard]:
    async with live_yard({"one": fake(), "two": fake(slots=2), "six": fake()}) as live:
        yield live


async def planned(yard: LiveYard, status: int = 200, **order: Any) -> Json:
    response = await yard.http.post("/admin/plan", json=order)
    assert response.status_code == status, response.text
    found: Json = response.json()
    return found


async def apply(yard: LiveYard, plan: Json, status: int = 200) -> Json:
    response = await yard.http.post("/admin/apply-plan", json={"id": plan["id"]})
    assert response.status_code == status, response.text
    found: Json = response.json()
    return found


def does(plan: Json) -> list[tuple[str, str]]:
    return [(step["does"], step["model"]) for step in plan["steps"]]


async def test_plan_do_and_explain_tell_the_same_story(yard: LiveYard) -> None:
    await yard.chat("one")
    await yard.chat("two")
    await yard.chat("two")
    before = yard.ready("one")
    assert before is not None
    plan = await planned(yard, load={"model": "six"})
    assert does(plan) == [
        ("leave", "one"),
        ("gone", "one"),
        ("start", "six"),
        ("ready", "six"),
        ("loaded", "six"),
    ]
    assert yard.ready("one") is before, "planning did something"
    leaves, _, starts = plan["steps"][:3]
    assert (leaves["instance"], leaves["for"], leaves["at"]) == (before.id, "six", 0.0)
    assert leaves["score"]["standing"] == "idle"
    assert "two" in leaves["score"]["spared"]
    assert starts["instance"] is None
    done = await apply(yard, plan)
    assert done["done"]
    assert done["instance"] == yard.ready("six").id  # type: ignore[union-attr]
    story = (await explained(yard, "six"))["story"]
    (left,) = [line["text"] for line in story if line["kind"] == "leave"]
    assert before.id in left
    assert leaves["reason"].split(" (")[0] in left
    assert leaves["score"]["spared"].split(" (")[0] in left


async def test_a_stale_plan_names_what_changed_and_does_nothing(yard: LiveYard) -> None:
    await yard.load("one")
    await yard.load("two")
    plan = await planned(yard, load={"model": "six"})
    (victim,) = [step["instance"] for step in plan["steps"] if step["does"] == "leave"]
    model = victim.rpartition("-")[0]
    free = await hold(yard, model)
    before = {each.id: each.state for each in yard.state.instances.values()}
    said = (await apply(yard, plan, 409))["error"]
    assert said["code"] == "plan_stale"
    assert f"{victim}: was idle, is busy" in said["message"]
    assert {each.id: each.state for each in yard.state.instances.values()} == before
    assert yard.instances("six") == []
    free()
    said = (await apply(yard, plan, 409))["error"]["message"]
    assert f"who leaves first for six: was {victim}, is {yard.ready('two').id}" in said  # type: ignore[union-attr]


async def test_traffic_that_a_plan_did_not_read_does_not_break_it(yard: LiveYard) -> None:
    await yard.chat("one")
    await yard.chat("two")
    await yard.chat("two")
    plan = await planned(yard, load={"model": "six"})
    assert ("leave", "one") in does(plan)
    for _ in range(3):
        await yard.chat("two")
    free = await hold(yard, "two")
    assert (await apply(yard, plan))["done"]
    assert yard.ready("two") is not None
    free()


async def test_a_plan_is_done_once(yard: LiveYard) -> None:
    plan = await planned(yard, load={"model": "one"})
    await apply(yard, plan)
    assert (await apply(yard, plan, 404))["error"]["code"] == "plan_not_found"


async def test_only_the_last_plans_are_kept(yard: LiveYard) -> None:
    first = await planned(yard, request={"model": "one", "max_wait": 1})
    for number in range(KEPT):
        last = await planned(yard, request={"model": "one", "max_wait": 2 + number})
    assert (await apply(yard, first, 404))["error"]["code"] == "plan_not_found"
    assert (await apply(yard, last))["done"]


@pytest.mark.parametrize("seconds", ["NaN", "Infinity", "-Infinity", "1e400", "-1"])
async def test_a_wait_is_a_number_of_seconds(yard: LiveYard, seconds: str) -> None:
    order = f'{{"request": {{"model": "one", "max_wait": {seconds}}}}}'
    response = await yard.http.post(
        "/admin/plan", content=order, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "body.request.max_wait"


async def test_without_waiting(yard: LiveYard) -> None:
    async def order(action: str) -> tuple[int, bool]:
        body: Json = {action: {"model": "one"}}
        plan = await planned(yard, **body)
        response = await yard.http.post("/admin/apply-plan", json={"id": plan["id"], "wait": False})
        return response.status_code, response.json()["done"]

    assert await order("load") == (202, False)
    await until(lambda: yard.ready("one") is not None)
    assert await order("load") == (200, True)
    assert await order("unload") == (202, False)
    await until(lambda: not yard.instances("one"))
    assert await order("unload") == (200, True)


async def test_unload_and_request(yard: LiveYard) -> None:
    plan = await planned(yard, request={"model": "one", "priority": "high", "max_wait": 30})
    assert does(plan) == [("start", "one"), ("ready", "one"), ("grant", "one")]
    done = await apply(yard, plan)
    ready = yard.ready("one")
    assert ready is not None
    assert done["instance"] == ready.id
    assert not ready.leases
    told = (await yard.http.get("/admin/explain/one")).json()
    assert told["requests"] == {"ok": 1}, "what was planned has an end as well"
    plan = await planned(yard, unload={"model": "one"})
    assert does(plan) == [("leave", "one"), ("gone", "one")]
    (device,) = [each for each in plan["memory"] if each["device"] == "gpu0"]
    assert device["free"]["before"] < device["free"]["after"] == device["budget"]
    assert (await apply(yard, plan))["done"]
    assert yard.ready("one") is None


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({}, "name one of"),
        ({"load": {"model": "one"}, "unload": {"model": "one"}}, "name one of"),
        ({"load": {"model": "one", "now": True}}, "now"),
        ({"request": {"model": "one", "priority": "huge"}}, "priority"),
    ],
)
async def test_an_order_that_is_none(yard: LiveYard, order: Json, words: str) -> None:
    assert words in (await planned(yard, 400, **order))["error"]["message"]


async def test_an_unknown_model(yard: LiveYard) -> None:
    assert (await planned(yard, 404, load={"model": "nine"}))["error"]["code"] == "model_not_found"


async def test_plans_need_the_scope_admin() -> None:
    async with live_yard({"one": fake()}, keys=KEYS) as yard:
        for path in ("/admin/plan", "/admin/apply-plan"):
            response = await yard.http.post(path, json={}, headers=bearer(USER))
            assert response.status_code == 403
