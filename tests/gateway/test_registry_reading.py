"""What is told of registered models and their versions, and names of versions that are not served yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from compose.test_catalog import yard_in
from gateway.live_yard import MB, LiveYard, fake, live_yard, short_folder
from modelyard.compose import upkeep
from modelyard.core import events as ev
from modelyard.gateway import names as names_module
from modelyard.gateway.names import Names
from modelyard.registry import Artifact, Capabilities, Registry, VersionState
from modelyard.runtime.driver import Driver
from store.test_quantize import random_gguf
from waiting import until


@pytest.fixture
async def yard() -> AsyncIterator[LiveYard]:
    async with live_yard({"a": fake(aliases=["short"])}) as live:
        yield live


async def ask(yard: LiveYard, method: str, path: str, body: object = None, status: int = 200) -> Any:
    response = await yard.http.request(method, path, json=body)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def two_versions(yard: LiveYard, name: str = "m", **fields: Any) -> None:
    await ask(yard, "POST", "/v1/models", {"name": name, **fake(**fields)}, 201)
    await ask(yard, "POST", f"/v1/models/{name}/versions", fake(slots=2), 201)


def registry_of(yard: LiveYard) -> Registry:
    """The registry of its server, as another server has it."""
    return Registry(yard.yard.config.server.data_dir / "registry.db")


# -- versions and policies ------------------------------------------------------------------------------


async def test_a_version_is_told_with_its_files(
    yard: LiveYard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "LOOK_EVERY", 0.05)
    source = random_gguf(tmp_path / "m.gguf")
    made = {"name": "m", "engine": "llamacpp", "devices": ["ram"], "source": str(source)}
    await ask(yard, "POST", "/v1/models", made, 201)
    await ask(yard, "POST", "/v1/cache/prefetch?wait=true", {"models": ["m"]})
    found: dict[str, Any] = {}

    async def known() -> bool:
        found.update(await ask(yard, "GET", "/v1/models/m/versions/1"))
        return bool(found["state"] == "verified")

    await until(known)
    assert found["number"] == 1
    (file,) = found["artifacts"]
    assert (file["path"], file["source"], file["size"]) == ("model", str(source), source.stat().st_size)
    assert (len(file["sha256"]), file["made_from"]) == (64, None)
    asked = ((2, "version_not_found", 404), (0, "invalid_request", 400), ("9" * 5000, "model_not_found", 404))
    for number, code, status in asked:
        refused = await ask(yard, "GET", f"/v1/models/m/versions/{number}", status=status)
        assert refused["error"]["code"] == code
    await ask(yard, "GET", "/v1/models/a/versions/1", status=409)
    response = await yard.http.delete("/v1/models/m/versions/1")
    assert (response.status_code, response.headers["allow"]) == (405, "GET")
    unknown = f"m@{'9' * 5000}"
    assert (await ask(yard, "GET", f"/v1/models/{unknown}", status=404))["error"]["code"] == "model_not_found"


async def test_files_are_told_without_secrets_and_null_while_the_database_is_away(yard: LiveYard) -> None:
    await two_versions(yard)
    registry = registry_of(yard)
    secret = Artifact("model", "https://ada:hunter2@h/m.gguf?token=hunter2", 5, "0" * 64, "mit", "1" * 64)
    await registry.report("m", 1, VersionState.VERIFIED, who="x", artifacts=[secret])
    await registry.close()
    (file,) = (await ask(yard, "GET", "/v1/models/m/versions/1"))["artifacts"]
    assert (file["licence"], file["made_from"]) == ("mit", "1" * 64)
    assert "hunter2" not in file["source"]
    database = yard.yard.config.server.data_dir / "registry.db"
    database.rename(database.with_name("elsewhere"))
    assert (await ask(yard, "GET", "/v1/models/m/versions/1"))["artifacts"] is None
    assert len((await ask(yard, "GET", "/v1/models/m/versions"))["data"]) == 2
    await ask(yard, "GET", "/v1/models/m/policies", status=503)
    database.with_name("elsewhere").rename(database)


async def test_policies_that_were(yard: LiveYard) -> None:
    await ask(yard, "POST", "/v1/models", {"name": "m", **fake(pin=True, aliases=["n"])}, 201)
    await ask(yard, "PATCH", "/v1/models/m", {"keep_alive": "1h", "pin": None})
    await ask(yard, "PATCH", "/v1/models/m", {"description": "no policy"})
    found = await ask(yard, "GET", "/v1/models/n/policies")
    assert found["has_more"] is False
    told = [(one["number"], one["policy"], one["created_by"]) for one in found["data"]]
    assert told == [(2, {"keep_alive": "1h"}, "anybody"), (1, {"pin": True}, "anybody")]
    first = await ask(yard, "GET", "/v1/models/m/policies?limit=1")
    assert ([one["number"] for one in first["data"]], first["has_more"]) == ([2], True)
    second = await ask(yard, "GET", "/v1/models/m/policies?limit=1&before=2")
    assert ([one["number"] for one in second["data"]], second["has_more"]) == ([1], False)
    await ask(yard, "GET", "/v1/models/a/policies", status=409)
    await ask(yard, "GET", "/v1/models/nobody/policies", status=404)
    for wrong in ("limit=0", "before=0", "limit=x"):
        await ask(yard, "GET", f"/v1/models/m/policies?{wrong}", status=400)


async def test_the_name_of_a_version_is_told_as_that_version(yard: LiveYard) -> None:
    await two_versions(yard)
    await ask(yard, "PUT", "/v1/models/m/tags/next", {"version": 2})
    for name in ("m@2", "m:next"):
        told = await ask(yard, "GET", f"/v1/models/{name}")
        registered = told["modelyard"]["registered"]
        assert (registered["number"], registered["current"], told["spec"]["slots"]) == (2, 1, 2)
        for one in (await ask(yard, "GET", f"/v1/models/{name}/versions"))["data"]:
            assert one["current"] == (one["number"] == 1)
        assert (await ask(yard, "GET", f"/v1/models/{name}/versions/1"))["current"]
        assert len((await ask(yard, "GET", f"/v1/models/{name}/policies"))["data"]) == 1


async def test_a_pair_of_languages_is_found(yard: LiveYard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LOOK_EVERY", 0.05)
    await two_versions(yard)
    assert (await ask(yard, "GET", "/v1/models?pair=en-de"))["data"] == []
    registry = registry_of(yard)
    can = Capabilities(frozenset({"translation"}), pairs=(("en", "de"),))
    await registry.report("m", 1, VersionState.VERIFIED, who="another server", capabilities=can)
    await registry.close()

    async def found(pair: str) -> list[str]:
        return [one["id"] for one in (await ask(yard, "GET", f"/v1/models?pair={pair}"))["data"]]

    async def told() -> bool:
        return await found("en-de") == ["m"]

    await until(told)
    assert await found("de-en") == []


# -- names of versions ----------------------------------------------------------------------------------


async def test_a_plan_of_a_version_that_is_not_served(yard: LiveYard) -> None:
    await two_versions(yard)
    for order in ("load", "request", "unload"):
        await ask(yard, "POST", "/admin/plan", {order: {"model": "nobody@2"}}, 404)
    plan = await ask(yard, "POST", "/admin/plan", {"load": {"model": "m@2"}})
    second = (await ask(yard, "GET", "/v1/models/m/versions/2"))["version"]
    assert {step["version"] for step in plan["steps"]} == {second}
    done = await ask(yard, "POST", "/admin/apply-plan", {"id": plan["id"]})
    assert done["done"]
    assert yard.ready("m") is not None


@pytest.mark.parametrize("order", ["request", "unload"])
async def test_other_plans_of_one(yard: LiveYard, order: str) -> None:
    await two_versions(yard)
    assert (await ask(yard, "POST", "/admin/plan", {order: {"model": "m@2"}}))["id"]


async def test_unloading_one(yard: LiveYard) -> None:
    await two_versions(yard)
    gone = await ask(yard, "POST", "/admin/models/m@2/unload")
    assert (gone["gone"], gone["instances"]) == (True, [])


async def test_ollama_is_shown_one(yard: LiveYard) -> None:
    await two_versions(yard)
    assert "completion" in (await ask(yard, "POST", "/api/show", {"model": "m@2"}))["capabilities"]


async def test_ollama_pulls_one(yard: LiveYard) -> None:
    await two_versions(yard)
    assert await ask(yard, "POST", "/api/pull", {"model": "m@2", "stream": False}) == {"status": "success"}
    await ask(yard, "POST", "/api/pull", {"model": "m@3", "stream": False}, 404)


# -- tags and names -------------------------------------------------------------------------------------


async def test_a_tag_that_nobody_would_reach_is_refused(yard: LiveYard) -> None:
    await two_versions(yard)
    await ask(yard, "POST", "/v1/models", {"name": "m:best", **fake(aliases=["m:other"])}, 201)
    for tag in ("best", "other"):
        refused = (await ask(yard, "PUT", f"/v1/models/m/tags/{tag}", {"version": 2}, 409))["error"]
        assert (refused["code"], refused["param"]) == ("name_taken", "tag")
        assert f"m:{tag}" in refused["message"]


async def test_a_name_that_would_hide_a_tag_is_refused(yard: LiveYard) -> None:
    await two_versions(yard)
    await ask(yard, "PUT", "/v1/models/m/tags/best", {"version": 2})
    for body, param in ((fake(), "name"), (fake(aliases=["m:best"]), "aliases")):
        name = "m:best" if param == "name" else "b"
        refused = (await ask(yard, "POST", "/v1/models", {"name": name, **body}, 409))["error"]
        assert (refused["code"], refused["param"]) == ("name_taken", param)
    refused = (await ask(yard, "PATCH", "/v1/models/m", {"aliases": ["m:best"]}, 409))["error"]
    assert refused["param"] == "aliases"


async def test_a_file_s_alias_that_hides_a_tag_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    with short_folder() as folder:
        async with yard_in(folder, {"a": fake()}) as live:
            await two_versions(live)
            await ask(live, "PUT", "/v1/models/m/tags/best", {"version": 2})
            path = folder / "modelyard.yaml"
            path.write_text(path.read_text().replace("  a:", "  a:\n    aliases: ['m:best', 'm:other']"))
            await ask(live, "POST", "/admin/config")
            assert (await ask(live, "GET", "/v1/models/m:best"))["id"] == "a"
            said = [line for line in capfd.readouterr().out.splitlines() if "tag.shadowed" in line]
            assert len(said) == 1
            assert "m:best" in said[0]


async def test_an_alias_that_is_taken_is_told_as_one(yard: LiveYard) -> None:
    await two_versions(yard, aliases=["n"])
    for taken in ("a", "short", "n"):
        body = {"name": "b", **fake(aliases=["free", taken])}
        refused = (await ask(yard, "POST", "/v1/models", body, 409))["error"]
        assert (refused["code"], refused["param"]) == ("name_taken", "aliases")
        assert taken in refused["message"]
        refused = (await ask(yard, "POST", "/v1/models", {"name": taken, **fake()}, 409))["error"]
        assert refused["param"] == "name"


def test_a_hint_compares_few_names_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def close(word: str, names: list[str], *rest: Any, **more: Any) -> list[str]:
        compared.append(len(names))
        return []

    names = Names()
    names._entries = {f"model-{number:04}": None for number in range(1000)}  # type: ignore[misc]
    assert "mean 'model-0777' or" in str(names._unknown("model-0777x"))
    monkeypatch.setattr(names_module, "get_close_matches", close)
    names._unknown("model-0778")
    assert compared == [names_module.COMPARED]


# -- upkeep ---------------------------------------------------------------------------------------------


async def test_own_changes_are_not_read_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(upkeep, "LOOK_EVERY", 0.02)
    reads, looks = 0, 0
    everything, stamp = Registry.all, Registry.stamp

    async def counted(self: Registry) -> Any:
        nonlocal reads
        reads += 1
        return await everything(self)

    async def looked(self: Registry) -> int:
        nonlocal looks
        looks += 1
        return await stamp(self)

    monkeypatch.setattr(Registry, "all", counted)
    monkeypatch.setattr(Registry, "stamp", looked)
    source = random_gguf(tmp_path / "w.gguf")
    async with live_yard({}) as yard:
        await two_versions(yard)
        await ask(yard, "PUT", "/v1/models/m/tags/best", {"version": 2})
        await ask(yard, "PATCH", "/v1/models/m", {"keep_alive": "1h"})
        await ask(yard, "POST", "/v1/models/m/promote?wait=true", {"version": 2})
        made = {"name": "w", "engine": "llamacpp", "devices": ["ram"], "source": str(source)}
        await ask(yard, "POST", "/v1/models", made, 201)
        await ask(yard, "POST", "/v1/cache/prefetch?wait=true", {"models": ["w"]})

        async def reported() -> bool:
            return bool((await ask(yard, "GET", "/v1/models/w/versions/1"))["state"] == "verified")

        await until(reported)
        await ask(yard, "DELETE", "/v1/models/w", status=204)
        seen = looks
        await until(lambda: looks > seen + 2)
        assert reads == 1, "at the start"
        other = registry_of(yard)
        await other.update("m", who="another server", description="theirs")

        async def told() -> bool:
            found = await ask(yard, "GET", "/v1/models/m")
            return bool(found["modelyard"]["registered"]["description"] == "theirs")

        await until(told)
        await other.close()
        assert reads == 2


async def test_few_reports_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "REPORTS", 2)
    monkeypatch.setattr(upkeep, "LOOK_EVERY", 3600.0)
    async with live_yard({}, memory=100 * MB) as yard:
        for number in range(5):
            await ask(yard, "POST", "/v1/models", {"name": f"m{number}", **fake()}, 201)
            yard.yard.names.model(f"m{number}").files = {}
        told = []
        for _ in range(4):
            await yard.yard._upkeep._report()
            holdings = yard.yard.catalog._held.holdings.values()
            told.append(sum(one.record.current.state is VersionState.VERIFIED for one in holdings))
        assert told == [2, 4, 5, 5]


# -- a shutdown in the middle ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["register", "update", "delete"])
async def test_a_change_that_is_kept_when_a_shutdown_comes_is_answered_so(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drivers: list[Driver] = []
    commit = getattr(Registry, method)

    async def committed(self: Registry, *given: Any, **more: Any) -> Any:
        done = await commit(self, *given, **more)
        for driver in drivers:
            driver.post(ev.ShutdownAsked())
        return done

    monkeypatch.setattr(Registry, method, committed)
    with short_folder() as folder:
        async with yard_in(folder, {}) as yard:
            if method != "register":
                await ask(yard, "POST", "/v1/models", {"name": "m", **fake()}, 201)
            drivers.append(yard.driver)
            if method == "register":
                made = await ask(yard, "POST", "/v1/models", {"name": "m", **fake()}, 201)
                assert made["modelyard"]["registered"]["revision"] == 1
            elif method == "update":
                changed = await ask(yard, "PATCH", "/v1/models/m", {"description": "new"})
                assert changed["modelyard"]["registered"]["description"] == "new"
            else:
                await ask(yard, "DELETE", "/v1/models/m", status=204)
            drivers.clear()
        async with yard_in(folder, {}) as yard:
            await ask(yard, "GET", "/v1/models/m", status=404 if method == "delete" else 200)


async def test_no_task_is_begun_by_a_server_that_stops(yard: LiveYard) -> None:
    await yard.yard._tasks.close()
    refused = await ask(yard, "POST", "/v1/cache/prefetch", {"models": ["a"]}, 503)
    assert refused["error"]["code"] == "shutting_down"
