"""Registered models that cannot be served on this machine: told, mended by another version, removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compose.test_catalog import register, yard_in
from gateway.live_yard import LiveYard, fake, short_folder
from modelyard.registry import NewVersion, Registry
from store.test_quantize import random_gguf

WHO = "tester"
GONE = {"engine": "vanished", "parameters": {"speed": 1}}


async def ask(yard: LiveYard, method: str, path: str, body: object = None, status: int = 200) -> Any:
    response = await yard.http.request(method, path, json=body)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def listed(yard: LiveYard, query: str = "") -> list[str]:
    return [one["id"] for one in (await ask(yard, "GET", f"/v1/models{query}"))["data"]]


async def registered(folder: Path, *specs: dict[str, Any]) -> None:
    """A model `m`, also `n`, with these versions, as a server with other engines has left it."""
    (folder / "data").mkdir()
    registry = Registry(folder / "data" / "registry.db")
    first, *others = (NewVersion(spec, f"{number:012x}") for number, spec in enumerate(specs, 10))
    policy = {"keep_alive": "1h", "pin": True}
    await registry.register("m", first, who=WHO, policy=policy, aliases=["n"])
    for version in others:
        await registry.add_version("m", version, who=WHO)
    await registry.close()


async def test_one_whose_engine_is_gone_is_told_and_removed() -> None:
    with short_folder() as folder:
        await registered(folder, GONE, fake())
        async with yard_in(folder, {"a": fake()}) as yard:
            for name in ("m", "n"):
                found = await ask(yard, "GET", f"/v1/models/{name}")
                ours = found["modelyard"]
                assert (found["id"], ours["engine"], ours["state"]) == ("m", "vanished", "failed")
                assert "there is no engine profile or engine 'vanished'" in ours["error"]
                assert (ours["capabilities"], ours["aliases"]) == ([], [])
                assert (found["policy"]["keep_alive"], found["policy"]["pin"]) == (3600, True)
                assert found["spec"] == GONE
            assert await listed(yard) == await listed(yard, "?limit=10") == ["a"]
            assert await listed(yard, "?state=failed") == ["m"]
            assert (await yard.chat("m")).status == 404
            await ask(yard, "POST", "/admin/cache/prune", {"files": ["m"]}, 404)
            assert len((await ask(yard, "GET", "/v1/models/m/versions"))["data"]) == 2
            assert (await ask(yard, "GET", "/v1/models/m/versions/1"))["artifacts"] == []
            refused = await ask(yard, "GET", "/v1/models/m/compare?from=1&to=2", status=422)
            assert refused["error"]["param"] == "engine"
            refused = await ask(yard, "PATCH", "/v1/models/m", {"pin": False}, 422)
            assert "vanished" in refused["error"]["message"]
            await ask(yard, "POST", "/v1/models", {"name": "m", **fake()}, 409)
            await ask(yard, "DELETE", "/v1/models/m", status=409)
            await ask(yard, "DELETE", "/v1/models/m?force=true", status=204)
            await ask(yard, "GET", "/v1/models/m", status=404)
            await register(yard, "m", fake())


async def test_another_version_mends_it() -> None:
    with short_folder() as folder:
        await registered(folder, GONE, fake())
        async with yard_in(folder, {"a": fake()}) as yard:
            await ask(yard, "PUT", "/v1/models/m/tags/old", {"version": 1})
            made = await ask(yard, "POST", "/v1/models/m/versions", fake(slots=2), 201)
            assert made["number"] == 3
            done = await ask(yard, "POST", "/v1/models/m/promote?wait=true", {"version": 2})
            assert (done["modelyard"]["error"], done["modelyard"]["aliases"]) == ("", ["n"])
            assert (await yard.chat("n")).status == 200
            assert await listed(yard) == ["a", "m"]
            for name in ("m@1", "m:old"):
                answer = await yard.chat(name)
                assert (answer.status, answer.code) == (503, "cannot_load")
                assert "vanished" in answer.body["error"]["message"]
                assert (await ask(yard, "GET", f"/v1/models/{name}"))["modelyard"]["state"] == "failed"
            back = await ask(yard, "POST", "/v1/models/m/rollback?wait=true", status=422)
            assert back["error"]["code"] == "spec_refused"
            assert (await ask(yard, "GET", "/v1/models/m"))["modelyard"]["registered"]["number"] == 2


async def test_one_whose_file_came_back_is_promoted_again(tmp_path: Path) -> None:
    fields = {"engine": "llamacpp", "devices": ["ram"], "parameters": {"context": 64}}
    file, elsewhere = tmp_path / "m.gguf", tmp_path / "elsewhere"
    random_gguf(file)
    with short_folder() as folder:
        async with yard_in(folder, {}) as yard:
            await register(yard, "m", {**fields, "source": str(file)})
        file.rename(elsewhere)
        async with yard_in(folder, {}) as yard:
            found = await ask(yard, "GET", "/v1/models/m")
            assert str(file) in found["modelyard"]["error"]
            assert await listed(yard) == []
            elsewhere.rename(file)
            await ask(yard, "POST", "/v1/models/m/promote?wait=true", {"version": 1})
            assert await listed(yard) == ["m"]


@pytest.mark.parametrize("hidden", ["m", "n"])
async def test_the_file_s_model_is_listed_under_a_name_that_both_have(hidden: str) -> None:
    """Another server registered it meanwhile."""
    with short_folder() as folder:
        async with yard_in(folder, {hidden: fake()}) as yard:
            other = Registry(folder / "data" / "registry.db")
            await other.register("m", NewVersion(fake(), "0" * 12), who=WHO, aliases=["n"])
            await yard.yard._upkeep.read()
            assert await listed(yard, "?limit=5") == await listed(yard) == [hidden]
            assert (await ask(yard, "GET", f"/v1/models/{hidden}"))["modelyard"]["owner"] == "file"
            await other.close()


async def test_the_registered_one_of_a_name_that_both_have_is_removed() -> None:
    with short_folder() as folder:
        async with yard_in(folder, {"m": fake()}) as yard:
            other = Registry(folder / "data" / "registry.db")
            await other.register("m", NewVersion(fake(), "0" * 12), who=WHO)
            await yard.yard._upkeep.read()
            assert (await yard.chat("m")).status == 200
            await ask(yard, "DELETE", "/v1/models/m", status=204)
            assert not (await other.all()).models
            assert (await yard.chat("m")).status == 200
            await ask(yard, "DELETE", "/v1/models/m", status=409)
            await other.close()
