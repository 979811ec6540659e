"""`GET /health_check`: what is served, in one look, for anybody, without loading anything."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.live_yard import SHARE, child_yard, fake, live_yard, short_folder
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


async def test_one_that_was_tried_in_vain_stays_so_until_a_start_goes_well() -> None:
    """Also when it may be tried again, and while it is."""
    crashing = fake(parameters={"exit_code": 1, "exit_log": "no idea why", "load_time": 0.2})
    async with live_yard({"b": crashing}) as yard:
        assert (await yard.http.get(PATH)).status_code == 200  # nobody knows yet
        assert (await yard.chat("b")).code == "load_failed"
        (version,) = yard.state.versions.values()
        answers = []

        async def tried_again() -> bool:
            answers.append(await yard.http.get(PATH))
            return bool(version.instances)

        asking = asyncio.create_task(until(tried_again))
        while not asking.done():
            await yard.chat("b")
        await asking
        answers.append(await yard.http.get(PATH))
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.json()["status"] for answer in answers} == {"degraded"}


async def test_files_that_no_engine_reads_are_told(tmp_path: Path) -> None:
    """As `serve --only translation` has it, of a folder with a model that is none."""
    (tmp_path / "config.json").write_text('{"model_type": "marian"}')
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    torn = {"engine": "ctranslate2", "source": str(tmp_path), "pairs": ["en-fr"], "devices": ["ram"]}
    models = {"torn": torn, "a": fake()}
    with short_folder() as folder:
        async with child_yard(folder, models, options=("--only", "translation")) as yard:
            refused = await yard.post("/translate", {"q": "one", "source": "en", "target": "fr"})
            assert refused.status >= 500, refused.body
            answer = await yard.http.get(PATH)
            assert (answer.status_code, answer.json()["status"]) == (503, "degraded")
            assert answer.json()["models"] == {"torn": "failed"}
