"""What the control surface tells: health, models in OpenAI's shape, status, devices, queues, errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2  # what openai's client is made of
import openai
import pytest

from gateway.live_yard import MB, SHARE, TWO, LiveYard, fake, live_yard
from gateway.test_inference import metrics_of
from waiting import until

MODELS = {
    "small": fake(slots=2, aliases=["tiny"], parameters={"context": 2048}),
    "org/large:1": fake(),
    "embedder": fake(parameters={"apis": ["embeddings"]}),
}


@pytest.fixture
async def yard() -> AsyncIterator[LiveYard]:
    async with live_yard(MODELS) as live:
        yield live


async def get(yard: LiveYard, path: str, status: int = 200) -> Any:
    response = await yard.http.get(path)
    assert response.status_code == status, response.text
    return response.json()


async def error(yard: LiveYard, method: str, path: str, status: int, **request: Any) -> dict[str, Any]:
    """The error that a request gets, after its shape was checked."""
    response = await yard.http.request(method, path, **request)
    assert response.status_code == status, response.text
    answer = response.json()
    assert list(answer) == ["error"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    found: dict[str, Any] = answer["error"]
    return found


# -- health ---------------------------------------------------------------------------------------------


async def test_health_and_readiness(yard: LiveYard) -> None:
    assert await get(yard, "/health") == {"status": "ok"}
    assert await get(yard, "/ready") == {"ready": True, "reason": ""}


async def test_not_ready_without_models() -> None:
    async with live_yard({}) as yard:
        assert await get(yard, "/health") == {"status": "ok"}
        assert await get(yard, "/ready", 503) == {"ready": False, "reason": "no model is configured"}
        assert (await get(yard, "/admin/status"))["models"] == []


async def test_not_ready_when_the_only_model_fails() -> None:
    async with live_yard({"broken": fake(parameters={"exit_code": 1})}) as yard:
        assert (await yard.post("/admin/models/broken/load")).status == 503
        answer = await get(yard, "/ready", 503)
        assert not answer["ready"]
        assert "broken did not start" in answer["reason"]
        (model,) = await get(yard, "/admin/models")
        assert model["details"]["state"] == "failed"
        assert "broken did not start" in model["error"]
        assert model["retry_in"] > 0


async def test_metrics_are_a_prometheus_page(yard: LiveYard) -> None:
    await yard.chat("small")
    response = await yard.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert 'modelyard_requests_total{model="small"' in response.text


async def test_the_page_and_the_reference_are_served(yard: LiveYard) -> None:
    page = await yard.http.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert "<title>Modelyard</title>" in page.text
    assert (await yard.http.get("/docs")).status_code == 200
    reference = await get(yard, "/openapi.json")
    assert "/admin/models/{name}/load" in reference["paths"]
    assert "requests that wait" in str(reference["components"]["schemas"]["QueueView"]).lower()


# -- models ---------------------------------------------------------------------------------------------


async def test_models_in_openais_shape(yard: LiveYard) -> None:
    answer = await get(yard, "/v1/models")
    assert answer["object"] == "list"
    assert [model["id"] for model in answer["data"]] == sorted(MODELS)
    embedder, _, small = answer["data"]
    assert (small["object"], small["owned_by"]) == ("model", "modelyard")
    assert small["created"] > 1_700_000_000
    assert small["modelyard"] == {
        "version": small["modelyard"]["version"],
        "state": "idle",
        "engine": "fake",
        "capabilities": ["chat", "completion", "embedding", "rerank"],
        "context": 2048,
        "slots": 2,
        "instances": 0,
        "aliases": ["tiny"],
        "owner": "file",
        "registered": None,
        "error": "",
        "files": None,
        "price": {"input": 0.0, "output": 0.0, "load": 0.0},
    }
    assert embedder["modelyard"]["capabilities"] == ["embedding"]


async def test_configured_capabilities_are_told_besides_what_is_served() -> None:
    model = fake(capabilities=["vision", "chat"], parameters={"apis": ["chat", "completions"]})
    async with live_yard({"a": model}) as yard:
        assert (await get(yard, "/v1/models/a"))["modelyard"]["capabilities"] == [
            "chat",
            "completion",
            "vision",
        ]


@pytest.mark.parametrize("name", ["org/large:1", "org%2Flarge%3A1", "org%2flarge:1"])
async def test_a_name_with_a_slash_and_a_colon(yard: LiveYard, name: str) -> None:
    assert (await get(yard, f"/v1/models/{name}"))["id"] == "org/large:1"


async def test_a_model_by_alias_and_by_version(yard: LiveYard) -> None:
    small = await get(yard, "/v1/models/tiny")
    assert small["id"] == "small"
    assert await get(yard, f"/v1/models/{small['modelyard']['version']}") == small


async def test_an_unknown_model(yard: LiveYard) -> None:
    found = await error(yard, "GET", "/v1/models/smal", 404)
    assert found["code"] == "model_not_found"
    assert "'small'" in found["message"]


async def test_openais_client_reads_the_list(yard: LiveYard) -> None:
    transport = httpx2.AsyncHTTPTransport(uds=str(yard.socket))
    async with openai.AsyncOpenAI(
        base_url="http://localhost/v1", api_key="none", http_client=httpx2.AsyncClient(transport=transport)
    ) as client:
        assert [model.id async for model in client.models.list()] == sorted(MODELS)
        assert (await client.models.retrieve("org/large:1")).id == "org/large:1"


async def test_the_state_follows_the_model(yard: LiveYard) -> None:
    async def state() -> str:
        return str((await get(yard, "/v1/models/small"))["modelyard"]["state"])

    assert await state() == "idle"
    await yard.load("small")
    assert await state() == "loaded"
    await yard.unload("small")
    assert await state() == "idle"


# -- status ---------------------------------------------------------------------------------------------


async def test_the_account_of_a_device(yard: LiveYard) -> None:
    instance = await yard.load("small")
    devices = {device["id"]: device for device in await get(yard, "/admin/devices")}
    assert set(devices) == {"ram", "gpu0"}
    gpu = devices["gpu0"]
    assert (gpu["kind"], gpu["total"], gpu["budget"]) == ("declared", 10 * MB, 10 * MB)
    assert gpu["reserved"] == 4 * MB
    assert gpu["free"] == gpu["budget"] - gpu["reserved"]
    (use,) = gpu["instances"]
    assert (use["instance"], use["model"], use["reserved"]) == (instance.id, "small", 4 * MB)
    assert set(use["pids"]) == set(yard.pids("small"))


async def test_an_instance_and_its_leases(yard: LiveYard) -> None:
    instance = await yard.load("small")
    slow = asyncio.create_task(yard.chat("small", fake={"delay": 0.5}))
    await until(lambda: yard.leases() == 1)
    found = await get(yard, f"/admin/instances/{instance.id}")
    assert (found["model"], found["state"], found["slots"]) == ("small", "ready", 2)
    (lease,) = found["leases"]
    assert lease["held"] >= 0
    assert found["idle_for"] is None
    assert found["load_seconds"] > 0
    assert found["reason"] == "asked to load"
    assert found["memory"][0]["device"] == "gpu0"
    assert set(found["pids"]) == set(yard.pids("small"))
    assert found["log"].endswith(".log")
    assert (await slow).status == 200
    (listed,) = await get(yard, "/admin/instances")
    assert listed["leases"] == []
    assert listed["idle_for"] is not None


async def test_who_waits_and_for_what(yard: LiveYard) -> None:
    """Two fit. Both are busy, so the third waits in line and its queue says for whose memory."""
    busy = [asyncio.create_task(yard.chat(model, fake={"delay": 1.0})) for model in ("small", "org/large:1")]
    await until(lambda: yard.leases() == 2)
    third = asyncio.create_task(
        yard.post("/v1/embeddings", {"model": "embedder", "input": "hi"}, **{"x-priority": "high"})
    )
    await until(lambda: yard.waiting() == 1)
    await until(lambda: bool(yard.state.versions[_version(yard, "embedder")].blocked_by))
    queues = {queue["model"]: queue for queue in await get(yard, "/admin/queues")}
    waits = queues["embedder"]
    assert waits["waiting"] == {"low": 0, "normal": 0, "high": 1}
    assert waits["oldest"] >= 0
    assert waits["line"] == 1
    assert waits["blocked_by"]
    assert waits["blocked_for"] is not None
    assert queues["small"]["waiting"] == {"low": 0, "normal": 0, "high": 0}
    assert queues["small"]["line"] is None
    assert (await third).status == 200
    assert [(await task).status for task in busy] == [200, 200]


def _version(yard: LiveYard, model: str) -> str:
    return yard.yard.names.resolve(model).spec.version


async def test_status_is_everything_in_one_answer(yard: LiveYard) -> None:
    await yard.chat("small")
    status = await get(yard, "/admin/status")
    assert status["ready"]
    assert (status["waiting"], status["running"], status["shutting_down"]) == (0, 0, False)
    states = {model["id"]: model["details"]["state"] for model in status["models"]}
    assert states == {"embedder": "idle", "org/large:1": "idle", "small": "loaded"}
    (small,) = (model for model in status["models"] if model["id"] == "small")
    assert small["instance_ids"] == [instance["id"] for instance in status["instances"]]
    assert small["last_used"] >= 0
    assert [instance["model"] for instance in status["instances"]] == ["small"]
    assert [event["kind"] for event in status["events"]] == ["start", "ready"]
    assert status["events"][0]["message"] == "1 request waiting"
    assert status["events"][0]["fields"]["model"] == "small"
    assert status["fetches"] == []


# -- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/nowhere", "/v1", "/admin", "/admin/nothing", "/admin/status/", "/health/x"]
)
async def test_unknown_paths(yard: LiveYard, path: str) -> None:
    found = await error(yard, "GET", path, 404)
    assert found["code"] == "not_found"
    assert found["message"] == f"There is no GET {path}; /docs lists what there is."


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/models", "GET, POST"),
        ("POST", "/v1/models/small", "DELETE, GET, PATCH"),
        ("GET", "/v1/models/small/tags/best", "DELETE, PUT"),
        ("DELETE", "/v1/models/small/promote", "POST"),
        ("GET", "/v1/models/small/predict", "POST"),
        ("OPTIONS", "/v1/models/small/predict", "POST"),
        ("OPTIONS", "/v1/models/small/versions", "GET, POST"),
        ("DELETE", "/admin/status", "GET"),
        ("GET", "/admin/models/small/load", "POST"),
    ],
)
async def test_wrong_methods(yard: LiveYard, method: str, path: str, allowed: str) -> None:
    response = await yard.http.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    assert response.json()["error"]["code"] == "method_not_allowed"
    assert f"{method} {path}" in response.json()["error"]["message"]


async def test_unknown_instances(yard: LiveYard) -> None:
    for method, path in [("GET", ""), ("GET", "/logs"), ("POST", "/drain")]:
        found = await error(yard, method, f"/admin/instances/nobody-7{path}", 404)
        assert found["code"] == "instance_not_found"
        assert "nobody-7" in found["message"]


@pytest.mark.parametrize(
    ("path", "place"),
    [("/admin/events?last=-1", "query.last"), ("/admin/events?last=x", "query.last")],
)
async def test_wrong_parameters(yard: LiveYard, path: str, place: str) -> None:
    found = await error(yard, "GET", path, 400)
    assert (found["code"], found["param"]) == ("invalid_request", place)
    assert place in found["message"]


async def test_the_metrics_show_the_same_state(yard: LiveYard) -> None:
    """Two run on `small`, one more waits for a slot of it; `embedder` was never asked for."""
    slow = {"tokens_per_second": 20}
    async with (
        yard.open_stream("small", tokens=40, fake=slow) as (_, first),
        yard.open_stream("small", tokens=40, fake=slow) as (_, second),
    ):
        await anext(first)
        await anext(second)
        waiting = asyncio.create_task(yard.chat("small"))
        await until(lambda: yard.waiting() == 1)
        found = await metrics_of(yard)
    assert (await waiting).status == 200
    assert found["modelyard_instances", ("small", "ready")] == 1
    assert found["modelyard_leases", ("small",)] == 2
    assert {name: found["modelyard_queued_requests", (name,)] for name in MODELS} == {
        "small": 1,
        "org/large:1": 0,
        "embedder": 0,
    }
    account = {
        kind: value for (name, labels), value in found.items() for kind in labels[1:] if "gpu0" in labels
    }
    assert account["budget"] == TWO
    assert account["reserved"] == SHARE
    assert account["free"] == TWO - SHARE - account["foreign"]
