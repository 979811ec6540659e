"""What the control surface does: load, unload, drain; and what it refuses without changing anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.live_yard import MB, SHARE, LiveYard, fake, live_yard
from gateway.test_admin import error
from waiting import until

MODELS = {
    "small": fake(slots=2),
    "org/large:1": fake(),
    "other": fake(),
    "huge": fake(memory=9 * MB, when_full="fail"),
    "broken": fake(parameters={"exit_code": 1, "exit_log": "error: failed to load model"}),
}


@pytest.fixture
async def yard() -> AsyncIterator[LiveYard]:
    async with live_yard(MODELS) as live:
        yield live


async def order(yard: LiveYard, path: str, body: Any = None, status: int = 200) -> dict[str, Any]:
    response = await yard.http.post(f"/admin/models/{path}", json=body)
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_load_answers_when_it_is_ready(yard: LiveYard) -> None:
    answer = await order(yard, "small/load")
    ready = yard.ready("small")
    assert ready is not None
    assert answer["instance"] == ready.id
    assert (answer["model"], answer["version"]) == ("small", ready.version.key)
    again = await order(yard, "small/load", {})
    assert again["instance"] == ready.id


@pytest.mark.parametrize("name", ["org/large:1", "org%2Flarge%3A1"])
async def test_load_and_unload_of_a_name_with_a_slash(yard: LiveYard, name: str) -> None:
    assert (await order(yard, f"{name}/load"))["model"] == "org/large:1"
    assert (await order(yard, f"{name}/unload"))["gone"]


async def test_load_without_waiting(yard: LiveYard) -> None:
    answer = await order(yard, "small/load", {"wait": False}, 202)
    assert answer["instance"] is None
    await until(lambda: yard.ready("small") is not None)


async def test_load_without_waiting_tells_what_is_decided_at_once(yard: LiveYard) -> None:
    ready = await yard.load("small")
    assert (await order(yard, "small/load", {"wait": False}))["instance"] == ready.id
    await error(yard, "POST", "/admin/models/broken/load", 503)
    found = await error(yard, "POST", "/admin/models/broken/load", 503, json={"wait": False})
    assert found["code"] == "cannot_load"
    assert "failed to load model" in found["message"]


async def test_load_without_waiting_of_what_never_fits() -> None:
    model = fake(2 * SHARE, parameters={"oom_at_load": True})
    async with live_yard({"a": model}, memory=2 * SHARE) as yard:
        for wait in (True, False):
            found = await error(yard, "POST", "/admin/models/a/load", 503, json={"wait": wait})
            assert found["code"] == "never_fits"


async def test_load_puts_others_out_unless_told_not_to(yard: LiveYard) -> None:
    await yard.load("small")
    await yard.load("other")
    response = await yard.http.post("/admin/models/org/large:1/load", json={"evict": False})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "no_memory"
    assert yard.ready("small") is not None
    assert yard.ready("other") is not None
    await yard.load("org/large:1")
    assert yard.ready("small") is None or yard.ready("other") is None


async def test_load_tells_why_it_failed(yard: LiveYard) -> None:
    found = await error(yard, "POST", "/admin/models/broken/load", 503)
    assert found["code"] == "cannot_load"
    assert "failed to load model" in found["message"]
    await until(lambda: not yard.instances("broken"))
    assert yard.reserved() == 0


async def test_unload_waits_for_what_runs(yard: LiveYard) -> None:
    instance = await yard.load("small")
    slow = asyncio.create_task(yard.chat("small", fake={"delay": 0.5}))
    await until(lambda: yard.leases() == 1)
    answer = await order(yard, "small/unload")
    assert (answer["gone"], answer["instances"]) == (True, [instance.id])
    assert not yard.instances("small")
    assert (await slow).status == 200


async def test_unload_now_cuts_what_runs(yard: LiveYard) -> None:
    instance = await yard.load("small")
    async with yard.open_stream("small", fake={"hang_after_tokens": 2}) as (stream, more):
        await anext(more)
        answer = await order(yard, "small/unload", {"now": True})
        assert (answer["gone"], answer["instances"]) == (True, [instance.id])
        assert instance.id not in yard.state.instances
        async for _ in more:
            pass
    assert stream.status == 200


async def test_unload_without_waiting(yard: LiveYard) -> None:
    await yard.load("small")
    answer = await order(yard, "small/unload", {"wait": False}, 202)
    assert not answer["gone"]
    await until(lambda: not yard.instances("small"))


async def test_unload_of_what_is_not_loaded(yard: LiveYard) -> None:
    answer = await order(yard, "small/unload")
    assert (answer["gone"], answer["instances"]) == (True, [])


async def test_drain_lets_what_runs_finish(yard: LiveYard) -> None:
    instance = await yard.load("small")
    slow = asyncio.create_task(yard.chat("small", fake={"delay": 0.5}))
    await until(lambda: yard.leases() == 1)
    response = await yard.http.post(f"/admin/instances/{instance.id}/drain")
    assert response.status_code == 202
    assert response.json()["state"] == "draining"
    assert (await slow).status == 200
    await until(lambda: not yard.instances("small"))


@pytest.mark.parametrize("change", ["load", "unload"])
async def test_orders_to_an_unknown_model(yard: LiveYard, change: str) -> None:
    found = await error(yard, "POST", f"/admin/models/nothing/{change}", 404)
    assert found["code"] == "model_not_found"


@pytest.mark.parametrize(
    "media", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""]
)
async def test_a_body_that_is_not_called_json(yard: LiveYard, media: str) -> None:
    """What a form on a foreign page could send."""
    for path in ("/admin/models/small/load", "/admin/models/small/unload", "/admin/instances/x/drain"):
        found = await error(
            yard, "POST", path, 415, content=b'{"wait": false}', headers={"content-type": media}
        )
        assert found["code"] == "unsupported_media_type"
        assert "application/json" in found["message"]
    assert not yard.state.instances


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        (b'"x"', "body"),
        (b'{"wait": "yes"}', "body.wait"),
        (b'{"wait": 1}', "body.wait"),
        (b'{"evct": true}', "body.evct"),
        (b"\xff\xfe", "body"),
    ],
)
async def test_a_wrong_body(yard: LiveYard, body: bytes, place: str) -> None:
    found = await error(
        yard,
        "POST",
        "/admin/models/small/load",
        400,
        content=body,
        headers={"content-type": "application/json"},
    )
    assert found["code"] == "invalid_request"
    assert (found["param"] or "body").startswith(place)
    assert not yard.state.instances


async def test_a_body_that_is_too_large() -> None:
    async with live_yard({"small": fake()}, server={"limits": {"body": "10kB"}}) as yard:
        found = await error(yard, "POST", "/admin/models/small/load", 413, json={"x": "y" * 20_000})
        assert found["code"] == "body_too_large"

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b" " * 1000

        headers = {"content-type": "application/json"}
        found = await error(yard, "POST", "/admin/models/small/load", 413, content=pieces(), headers=headers)
        assert found["code"] == "body_too_large"
        assert not yard.state.instances
