"""`GET /health_check`: what is served, in one look, for anybody, without loading anything."""

from __future__ import annotations

from gateway.live_yard import SHARE, fake, live_yard
from gateway.test_reference import KEYS
from waiting import until

PATH = "/health_check"


async def test_all_is_well_and_nothing_is_loaded() -> None:
    async with live_yard({"a": fake(), "b": fake()}, keys=KEYS) as yard:
        answer = await yard.http.get(PATH)
        assert answer.status_code == 200
        said = answer.json()
        assert (said["status"], said["models"]) == ("ok", {"a": "idle", "b": "idle"})
        assert said["devices"]["gpu0"] == "ok"
        assert not yard.state.instances


async def test_one_model_that_fails_is_told_and_none_that_can_is_503() -> None:
    broken = fake(parameters={"exit_code": 1, "exit_log": "error: failed to load model: torn"})
    async with live_yard({"a": fake(memory=SHARE), "b": broken}) as yard:
        await yard.load("a")
        assert (await yard.chat("b")).code == "cannot_load"
        said = await yard.http.get(PATH)
        assert (said.status_code, said.json()["status"]) == (200, "degraded")
        assert said.json()["models"] == {"a": "loaded", "b": "failed"}
    async with live_yard({"b": broken}) as yard:
        assert (await yard.chat("b")).code == "cannot_load"
        answer = await yard.http.get(PATH)
        assert (answer.status_code, answer.json()["status"]) == (503, "degraded")


async def test_a_device_that_is_closed_is_told() -> None:
    async with live_yard({"a": fake()}) as yard:
        assert (await yard.post("/admin/devices/gpu0/fence", {})).status == 200
        await until(lambda: yard.state.ledger.devices["gpu0"].closed)
        said = (await yard.http.get(PATH)).json()
        assert said["status"] == "degraded"
        assert said["devices"]["gpu0"] != "ok"
