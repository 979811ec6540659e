"""Models as data over HTTP: registered, given versions, promoted, tagged, removed; and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from engines.gguf_file import gguf
from gateway.answers import Answer
from gateway.live_yard import MB, SHARE, LiveYard, fake, live_yard
from modelyard.compose import catalog
from modelyard.gateway import registry_routes
from modelyard.registry.checks import without_secrets
from store.hub_server import REPO, hub_server
from store.test_quantize import random_gguf
from waiting import until

NAMES = ["b", "org/b", "b:1", "org/b:1", "a/versions", "a/tags/x", "x.y+z-1"]
"""Names of models. The last but one are paths of their own unless they are percent-encoded."""


def quoted(name: str) -> str:
    return name.replace("/", "%2F").replace(":", "%3A").replace("+", "%2B")


def entry(**fields: Any) -> dict[str, Any]:
    """A model of the fake engine, as it is registered."""
    return fake(**fields)


@pytest.fixture
async def yard() -> AsyncIterator[LiveYard]:
    async with live_yard({"a": fake(aliases=["short"])}) as live:
        yield live


async def ask(
    yard: LiveYard, method: str, path: str, body: object = None, status: int = 200, **headers: str
) -> Any:
    """The JSON of an answer with this status; None when it has no body."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await yard.http.request(method, path, json=body, headers=sent)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def refused(
    yard: LiveYard, method: str, path: str, body: object, status: int, code: str, **headers: str
) -> dict[str, Any]:
    found: dict[str, Any] = (await ask(yard, method, path, body, status, **headers))["error"]
    assert found["code"] == code
    return found


async def register(yard: LiveYard, name: str = "b", **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await ask(yard, "POST", "/v1/models", {"name": name, **entry(**fields)}, 201)
    return answer


async def two_versions(yard: LiveYard, name: str = "b", *, memory: int = SHARE, **fields: Any) -> None:
    await register(yard, name, memory=memory, **fields)
    await ask(yard, "POST", f"/v1/models/{quoted(name)}/versions", entry(memory=memory, slots=2), 201)


def version_of(answer: Answer) -> str:
    return answer.headers["x-modelyard-version"]


# -- registering ----------------------------------------------------------------------------------------


async def test_a_registered_model_answers(yard: LiveYard) -> None:
    response = await yard.http.post("/v1/models", json={"name": "b", "description": "mine", **entry()})
    assert response.status_code == 201, response.text
    assert response.headers["location"] == "/v1/models/b"
    assert response.headers["etag"] == '"1"'
    made = response.json()
    ours = made["modelyard"]
    assert (made["id"], made["object"], ours["owner"]) == ("b", "model", "registry")
    registered = ours["registered"]
    assert (registered["number"], registered["revision"], registered["previous"]) == (1, 1, None)
    assert (registered["description"], registered["tags"]) == ("mine", {})
    assert made["spec"]["engine"] == "fake"
    assert made["policy"]["keep_alive"] == 600
    answer = await yard.chat("b")
    assert answer.status == 200, answer.body
    assert version_of(answer) == ours["version"]
    assert (await ask(yard, "GET", "/v1/models/b"))["modelyard"]["state"] == "loaded"
    listed = (await ask(yard, "GET", "/v1/models"))["data"]
    assert [model["id"] for model in listed] == ["a", "b"]


@pytest.mark.parametrize("name", NAMES)
async def test_names_in_paths(yard: LiveYard, name: str) -> None:
    response = await yard.http.post("/v1/models", json={"name": name, **entry()})
    assert response.status_code == 201, response.text
    location = response.headers["location"]
    for path in (f"/v1/models/{quoted(name)}", location):
        assert (await ask(yard, "GET", path))["id"] == name
    assert (await ask(yard, "GET", f"{location}/versions"))["data"][0]["model"] == name
    await ask(yard, "PUT", f"{location}/tags/best", {"version": 1})
    for other in (f"{location}@1", f"{location}%401", f"{location}:best", f"{location}%3Abest"):
        assert (await ask(yard, "GET", other))["id"] == name, other
        answer = await yard.post(f"{other}/predict", {"prompt": "hi", "max_tokens": 1})
        assert answer.status == 200, answer.body
    await ask(yard, "PATCH", location, {"keep_alive": "1m"})
    await ask(yard, "DELETE", f"{location}/tags/best")
    await yard.settled()
    await yard.unload(quoted(name), now=True)
    assert await ask(yard, "DELETE", location, status=204) is None
    await refused(yard, "GET", location, None, 404, "model_not_found")


async def test_a_literal_verb_is_not_the_end_of_a_name(yard: LiveYard) -> None:
    await register(yard, "a/versions")
    found = await refused(yard, "GET", "/v1/models/a/versions", None, 409, "owned_by_file")
    assert "a belongs to the configuration's file" in found["message"]
    for method in ("DELETE", "PATCH"):
        response = await yard.http.request(method, "/v1/models/a/versions", json={})
        assert response.status_code == 405
        assert response.headers["allow"] == "GET, POST"
    response = await yard.http.request("PATCH", "/v1/models/a/versions/tags/x", json={})
    assert (response.status_code, response.headers["allow"]) == (405, "DELETE, PUT")
    response = await yard.http.post("/v1/models/a%2Fpredict", json={"prompt": "hi"})
    assert (response.status_code, response.headers["allow"]) == (405, "GET, PATCH, DELETE")
    await ask(yard, "DELETE", "/v1/models/a%2Fversions", status=204)


@pytest.mark.parametrize(
    "name",
    ["é", "日本", "a b", "a%20b", "", "b@1", "@", "x" * 201, "-b", "a\nb", "a/../b", "a/.", "a//b", "a/"],
)
async def test_names_that_are_none(yard: LiveYard, name: str) -> None:
    response = await yard.http.post("/v1/models", json={"name": name, **entry()})
    assert response.status_code in (400, 422), response.text
    assert "name" in response.json()["error"]["param"]
    assert len((await ask(yard, "GET", "/v1/models"))["data"]) == 1
    if name:
        assert (await yard.http.get(f"/v1/models/{quote(name, safe='')}")).status_code == 404


@pytest.mark.parametrize("taken", ["a", "short", "b"])
async def test_a_name_is_taken_once(yard: LiveYard, taken: str) -> None:
    await register(yard)
    found = await refused(yard, "POST", "/v1/models", {"name": taken, **entry()}, 409, "name_taken")
    assert taken in found["message"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"engine": "nobody"}, "engine"),
        ({"engine": "fake", "slot": 2}, "slot"),
        ({"engine": "fake", "slots": 0}, "slots"),
        ({"engine": "fake", "aliases": [{}]}, "aliases"),
        ({"engine": "fake", "aliases": 5}, "aliases"),
        ({"engine": "fake", "aliases": {"x": 1}}, "aliases"),
        ({"engine": "fake", "aliases": ["c d"]}, "aliases"),
        ({"engine": "fake", "parameters": {"memory": -1}}, "memory"),
        ({"engine": "fake", "keep_alive": "soon"}, "keep_alive"),
        ({"engine": "llamacpp", "source": "gopher://x/y"}, "source"),
        ({"engine": "llamacpp", "source": "/nowhere/model.gguf"}, "source"),
        ({}, "engine"),
    ],
)
async def test_wrong_fields_are_named(yard: LiveYard, fields: dict[str, Any], said: str) -> None:
    found = await refused(yard, "POST", "/v1/models", {"name": "b", **fields}, 422, "spec_refused")
    assert said in found["message"]
    assert len((await ask(yard, "GET", "/v1/models"))["data"]) == 1


async def test_bodies_that_are_none(yard: LiveYard) -> None:
    json_type = {"content-type": "application/json"}
    for body in (b"", b"{", b"[]", b'"x"', b'{"name": 1}', b'{"slots": NaN}', b'{"description": 1}'):
        response = await yard.http.post("/v1/models", content=body, headers=json_type)
        assert response.status_code == 400, (body, response.text)
    form = {"content-type": "application/x-www-form-urlencoded"}
    response = await yard.http.post("/v1/models", content=b"name=b", headers=form)
    assert response.status_code == 415


async def test_a_source_tells_a_name(yard: LiveYard) -> None:
    body = {"source": "/nowhere/Some%20Model-Q4_K.gguf", **entry()}
    assert (await ask(yard, "POST", "/v1/models", body, 201))["id"] == "Some-Model-Q4_K"
    found = await refused(yard, "POST", "/v1/models", entry(), 422, "spec_refused")
    assert found["param"] == "name"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf://org/repo@v1/Chat-Q4_K.gguf", "Chat-Q4_K"),
        ("https://example.org/x/big-00001-of-00003.GGUF?download=true#sha256=" + "0" * 64, "big"),
        ("ollama://qwen3:0.6b", "qwen3:0.6b"),
    ],
)
def test_a_bare_source_tells_name_and_engine(source: str, name: str) -> None:
    assert (registry_routes._name_of(source), registry_routes._engine_of(source)) == (name, "llamacpp")


async def test_a_bare_source_is_enough(yard: LiveYard, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server() as hub:
        hub.add("Chat-Q4_K.gguf", gguf({"general.architecture": "llama"}))
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        source = f"hf://{REPO}/Chat-Q4_K.gguf"
        made = await ask(yard, "POST", "/v1/models", {"source": source}, 201)
        assert (made["id"], made["spec"]["engine"]) == ("Chat-Q4_K", "llamacpp")
        missing = {"source": f"hf://{REPO}/chat.gguf"}
        found = await refused(yard, "POST", "/v1/models", missing, 422, "spec_refused")
        assert "has no file chat.gguf" in found["message"]
    await refused(yard, "POST", "/v1/models", {"source": "hf://org/repo/x.bin"}, 422, "spec_refused")


async def test_a_source_that_cannot_be_asked(yard: LiveYard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "ASKING", 0.2)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    body = {"source": "hf://org/repo/x.gguf"}
    found = await refused(yard, "POST", "/v1/models", body, 502, "source_unreachable")
    assert found["param"] == "source"
    assert "hf://org/repo@main/x.gguf: the connection to" in found["message"]
    assert len((await ask(yard, "GET", "/v1/models"))["data"]) == 1


async def test_no_reader_is_shown_a_secret(yard: LiveYard, tmp_path: Path) -> None:
    source = str(random_gguf(tmp_path / "f16.gguf"))
    secret = {
        "engine": "llamacpp",
        "source": source,
        "devices": ["ram"],
        "parameters": {"api_key": "hunter2"},
    }
    response = await yard.http.post("/v1/models", json={"name": "w", **secret})
    assert "hunter2" not in response.text
    shown = without_secrets({"source": "https://usr:hunter2@h/x.gguf?token=hunter2"})
    assert "hunter2" not in str(shown)


async def test_a_version_with_its_file_quantized(yard: LiveYard, tmp_path: Path) -> None:
    source = str(random_gguf(tmp_path / "f16.gguf"))
    made = {"name": "w", "engine": "llamacpp", "source": source, "devices": ["ram"]}
    await ask(yard, "POST", "/v1/models", made, 201)
    found = await ask(yard, "POST", "/v1/models/w/quantize?wait=true", {"type": "q8_0"})
    assert (found["number"], found["current"], found["spec"]["quantize"]) == (2, False, "q8_0")
    entry = yard.yard.names.resolve("w@2")
    assert entry.files is not None
    assert entry.files["model"].size < Path(source).stat().st_size
    await refused(yard, "POST", "/v1/models/w/quantize", {"type": "q99"}, 422, "spec_refused")
    await register(yard)
    await refused(yard, "POST", "/v1/models/b/quantize", {"type": "q8_0"}, 422, "spec_refused")


# -- lists ----------------------------------------------------------------------------------------------


async def test_pages(yard: LiveYard) -> None:
    for name in ("d", "b", "c"):
        await register(yard, name)
    first = await ask(yard, "GET", "/v1/models?limit=2")
    assert [one["id"] for one in first["data"]] == ["a", "b"]
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, "a", "b")
    for after in ("after=b", "after_id=b"):
        second = await ask(yard, "GET", f"/v1/models?limit=2&{after}")
        assert [one["id"] for one in second["data"]] == ["c", "d"]
        assert second["has_more"] is False
    assert (await ask(yard, "GET", "/v1/models?limit=4"))["has_more"] is False
    assert (await ask(yard, "GET", "/v1/models?after=d"))["data"] == []
    for wrong in ("limit=0", "limit=1001", "limit=x", "state=tired", "pair=en"):
        await refused(yard, "GET", f"/v1/models?{wrong}", None, 400, "invalid_request")


async def test_filters(yard: LiveYard) -> None:
    await register(yard, "embedder", parameters={"apis": ["embeddings"]})
    await register(yard, "other", capabilities=["translation"])
    await yard.load("other")

    async def names(query: str) -> list[str]:
        return [one["id"] for one in (await ask(yard, "GET", f"/v1/models?{query}"))["data"]]

    assert await names("name=THE") == ["other"]
    assert await names("capability=embedding") == ["a", "embedder", "other"]
    assert await names("capability=translation") == ["other"]
    assert await names("state=loaded") == ["other"]
    assert await names("state=idle&limit=1") == ["a"]
    assert await names("state=idle&limit=2") == ["a", "embedder"]
    assert (await ask(yard, "GET", "/v1/models?state=idle&limit=2"))["has_more"] is False


async def test_anthropics_list(yard: LiveYard) -> None:
    await register(yard)
    page = await ask(yard, "GET", "/v1/models?limit=1", anthropic_version="2023-06-01")
    assert [one["id"] for one in page["data"]] == ["a"]
    assert (page["has_more"], page["last_id"]) == (True, "a")
    page = await ask(yard, "GET", "/v1/models?limit=1&after_id=a", anthropic_version="2023-06-01")
    assert [one["id"] for one in page["data"]] == ["b"]


# -- changes --------------------------------------------------------------------------------------------


async def test_the_policy_changes_and_the_version_stays(yard: LiveYard) -> None:
    made = await register(yard)
    await yard.load("b")
    pids = yard.pids("b")
    changed = await ask(
        yard, "PATCH", "/v1/models/b", {"keep_alive": "1m", "aliases": ["best"], "description": "new"}
    )
    assert changed["policy"]["keep_alive"] == 60
    assert changed["modelyard"]["version"] == made["modelyard"]["version"]
    assert changed["modelyard"]["aliases"] == ["best"]
    assert changed["modelyard"]["registered"]["description"] == "new"
    assert (await yard.chat("best")).status == 200
    assert yard.pids("b") == pids
    changed = await ask(yard, "PATCH", "/v1/models/best", {"keep_alive": None})
    assert changed["policy"]["keep_alive"] == 600
    assert changed["modelyard"]["registered"]["description"] == "new"
    for field in ("slots", "source", "engine", "parameters", "devices", "capabilities"):
        found = await refused(yard, "PATCH", "/v1/models/b", {field: 1}, 422, "spec_refused")
        assert found["param"] == field
        assert "/v1/models/b/versions" in found["message"]
    await refused(yard, "PATCH", "/v1/models/b", {"keep_alive": "soon"}, 422, "spec_refused")
    await refused(yard, "PATCH", "/v1/models/b", {"nothing": 1}, 422, "spec_refused")
    await refused(yard, "PATCH", "/v1/models/b", {"aliases": ["a"]}, 409, "name_taken")


async def test_a_change_of_another_revision_is_refused(yard: LiveYard) -> None:
    await register(yard)
    response = await yard.http.get("/v1/models/b")
    seen = response.headers["etag"]
    await ask(yard, "PATCH", "/v1/models/b", {"pin": True}, if_match=seen)
    for stale in (seen, 'W/"2"', '"x"', f"{seen}, W/{seen}"):
        await refused(yard, "PATCH", "/v1/models/b", {"pin": False}, 412, "revision_mismatch", if_match=stale)
        await refused(yard, "DELETE", "/v1/models/b", None, 412, "revision_mismatch", if_match=stale)
    for bad in ("2", '"2', ""):
        await refused(yard, "PATCH", "/v1/models/b", {"pin": False}, 400, "invalid_request", if_match=bad)
    for good in ('"2"', "*", '"1", "4"'):
        response = await yard.http.patch("/v1/models/b", json={"pin": False}, headers={"if-match": good})
        assert response.status_code == 200, response.text


async def test_a_model_of_a_file_is_changed_there(yard: LiveYard) -> None:
    for method, path, body in (
        ("PATCH", "", {"pin": True}),
        ("DELETE", "", None),
        ("POST", "/versions", entry()),
        ("GET", "/versions", None),
        ("GET", "/compare?from=1&to=2", None),
        ("POST", "/promote", {"version": 1}),
        ("POST", "/rollback", None),
        ("PUT", "/tags/x", {"version": 1}),
    ):
        await refused(yard, method, f"/v1/models/a{path}", body, 409, "owned_by_file")
        await refused(yard, method, f"/v1/models/nobody{path}", body, 404, "model_not_found")
    shown = await ask(yard, "GET", "/v1/models/short")
    assert (shown["modelyard"]["owner"], shown["modelyard"]["registered"], shown["spec"]) == (
        "file",
        None,
        None,
    )
    assert "etag" not in (await yard.http.get("/v1/models/a")).headers


# -- versions -------------------------------------------------------------------------------------------


async def test_versions(yard: LiveYard) -> None:
    await two_versions(yard)
    first, second = (await ask(yard, "GET", "/v1/models/b/versions"))["data"]
    assert (first["number"], first["current"], second["number"], second["current"]) == (1, True, 2, False)
    assert second["spec"]["slots"] == 2
    assert second["version"].startswith("b@")
    again = await ask(yard, "POST", "/v1/models/b/versions", entry(slots=2), 200)
    assert again["number"] == 2
    found = await ask(yard, "GET", "/v1/models/b/compare?from=1&to=2")
    assert (found["from"], found["to"]) == (1, 2)
    assert found["fields"] == [{"path": "slots", "before": 1, "after": 2}]
    await refused(yard, "GET", "/v1/models/b/compare?from=1&to=3", None, 404, "version_not_found")
    await refused(yard, "GET", "/v1/models/b/compare?from=1", None, 400, "invalid_request")
    refusal = await refused(
        yard, "POST", "/v1/models/b/versions", entry(keep_alive="1m"), 422, "spec_refused"
    )
    assert "PATCH /v1/models/b" in refusal["message"]
    answer = await yard.chat("b")
    assert version_of(answer) == first["version"]
    for name in ("b@2", f"b@{second['digest'][:8]}"):
        answer = await yard.chat(name)
        assert answer.status == 200, answer.body
        assert version_of(answer) == second["version"]


async def test_a_version_is_loaded_by_its_name(yard: LiveYard) -> None:
    await two_versions(yard)
    answer = await yard.post("/admin/models/b@2/load")
    assert answer.status == 200, answer.body
    second = (await ask(yard, "GET", "/v1/models/b/versions"))["data"][1]["version"]
    assert answer.body["version"] == second
    assert (await yard.post("/admin/models/b@3/load")).status == 404


async def test_promote_and_rollback(yard: LiveYard) -> None:
    await two_versions(yard)
    first, second = (await ask(yard, "GET", "/v1/models/b/versions"))["data"]
    assert version_of(await yard.chat("b")) == first["version"]
    response = await yard.http.post("/v1/models/b/promote", json={"version": 2})
    assert response.status_code == 202, response.text
    task = response.json()
    assert (task["kind"], task["subject"]) == ("promote", "b@2")
    assert response.headers["location"] == f"/v1/tasks/{task['id']}"
    done = await ended(yard, task["id"])
    assert done["state"] == "done", done
    assert done["result"]["modelyard"]["version"] == second["version"]
    assert yard.ready("b") is not None, "it was loaded before it took over"
    assert version_of(await yard.chat("b")) == second["version"]
    back = await ask(yard, "POST", "/v1/models/b/rollback?wait=true")
    assert back["modelyard"]["registered"]["number"] == 1
    assert version_of(await yard.chat("b")) == first["version"]
    back = await ask(yard, "POST", "/v1/models/b/rollback?wait=true", {"version": 2})
    assert back["modelyard"]["registered"]["previous"] == 1
    for version in (3, 0, "1", None):
        status, code = (404, "version_not_found") if version == 3 else (400, "invalid_request")
        await refused(yard, "POST", "/v1/models/b/promote", {"version": version}, status, code)
    await refused(
        yard, "POST", "/v1/models/b/promote", {"version": 1}, 412, "revision_mismatch", if_match='"1"'
    )


async def test_what_does_not_fit_beside_asks_for_a_swap(yard: LiveYard) -> None:
    await two_versions(yard, memory=6 * MB)
    await yard.chat("b")
    found = await refused(
        yard, "POST", "/v1/models/b/promote?wait=true", {"version": 2}, 409, "no_room_beside"
    )
    assert found["param"] == "swap"
    assert (await ask(yard, "GET", "/v1/models/b"))["modelyard"]["registered"]["number"] == 1
    response = await yard.http.post("/v1/models/b/promote", json={"version": 2})
    failed = await ended(yard, response.json()["id"])
    assert (failed["state"], failed["error"]["code"]) == ("failed", "no_room_beside")
    await ask(yard, "POST", "/v1/models/b/promote?wait=true", {"version": 2, "swap": True})
    assert (await yard.chat("b")).status == 200


async def test_one_that_cannot_be_loaded_is_not_promoted(yard: LiveYard) -> None:
    await register(yard)
    broken = entry(parameters={"exit_code": 1, "exit_log": "error: failed to load model"})
    await ask(yard, "POST", "/v1/models/b/versions", broken, 201)
    await refused(yard, "POST", "/v1/models/b/promote?wait=true", {"version": 2}, 503, "cannot_load")
    assert (await ask(yard, "GET", "/v1/models/b"))["modelyard"]["registered"]["number"] == 1
    assert (await yard.chat("b")).status == 200


async def test_no_version_before(yard: LiveYard) -> None:
    await register(yard)
    await refused(yard, "POST", "/v1/models/b/rollback", None, 404, "version_not_found")


async def test_tags(yard: LiveYard) -> None:
    await two_versions(yard)
    shown = await ask(yard, "PUT", "/v1/models/b/tags/best", {"version": 2})
    assert shown["modelyard"]["registered"]["tags"] == {"best": 2}
    assert [one["tags"] for one in (await ask(yard, "GET", "/v1/models/b/versions"))["data"]] == [
        [],
        ["best"],
    ]
    answer = await yard.chat("b:best")
    second = (await ask(yard, "GET", "/v1/models/b/versions"))["data"][1]["version"]
    assert version_of(answer) == second
    await refused(yard, "PUT", "/v1/models/b/tags/best", {"version": 3}, 404, "version_not_found")
    await refused(yard, "PUT", "/v1/models/b/tags/a%20b", {"version": 1}, 400, "invalid_request")
    await refused(yard, "PATCH", "/v1/models/b:best", {"pin": True}, 400, "invalid_request")
    await ask(yard, "DELETE", "/v1/models/b/tags/best")
    await refused(yard, "DELETE", "/v1/models/b/tags/best", None, 404, "version_not_found")


# -- removing -------------------------------------------------------------------------------------------


async def test_an_idle_one_is_gone_at_once(yard: LiveYard) -> None:
    await register(yard)
    response = await yard.http.delete("/v1/models/b")
    assert (response.status_code, response.content) == (204, b"")
    await refused(yard, "DELETE", "/v1/models/b", None, 404, "model_not_found")
    assert (await yard.chat("b")).status == 404
    await register(yard)


async def test_one_that_runs_drains(yard: LiveYard) -> None:
    await register(yard, parameters={"tokens_per_second": 20})
    await yard.load("b")
    running = asyncio.create_task(yard.chat("b", tokens=8))
    await until(lambda: yard.leases() == 1)
    task = await ask(yard, "DELETE", "/v1/models/b", status=202)
    assert (task["kind"], task["subject"], task["state"]) == ("remove", "b", "running")
    assert (await yard.chat("b")).status == 404
    done = await ended(yard, task["id"])
    assert (done["state"], done["result"]) == ("done", {"model": "b"})
    assert (await running).status == 200
    assert not yard.instances("b")


async def test_an_alias_keeps_it_unless_forced(yard: LiveYard) -> None:
    await register(yard, aliases=["best"])
    found = await refused(yard, "DELETE", "/v1/models/b", None, 409, "alias_in_use")
    assert "best" in found["message"]
    await refused(yard, "DELETE", "/v1/models/best", None, 400, "invalid_request")
    await ask(yard, "DELETE", "/v1/models/b?force=true", status=204)
    await refused(yard, "GET", "/v1/models/best", None, 404, "model_not_found")


# -- predict, prefetch, audit ---------------------------------------------------------------------------


async def test_predict_takes_the_body_of_its_endpoint(yard: LiveYard) -> None:
    path = "/v1/models/a/predict"
    chat = await yard.post(path, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
    assert chat.status == 200, chat.body
    assert chat.body["object"] == "chat.completion"
    assert (await yard.post(path, {"prompt": "hi", "max_tokens": 2})).body["object"] == "text_completion"
    assert (await yard.post(path, {"input": "hi"})).body["object"] == "list"
    assert (await yard.post("/v1/models/short/predict", {"model": "a", "prompt": "hi"})).status == 200
    for body, code, status in (
        ({"model": "nobody", "prompt": "hi"}, "model_not_found", 404),
        ({"text": "hi"}, "invalid_request", 400),
        ([], "invalid_request", 400),
    ):
        answer = await yard.post(path, body)
        assert (answer.status, answer.code) == (status, code)
    await register(yard, "embedder", parameters={"apis": ["embeddings"]})
    answer = await yard.post("/v1/models/embedder/predict", {"prompt": "hi"})
    assert (answer.status, answer.code) == (501, "not_supported")
    answer = await yard.post("/v1/models/embedder/predict", {"model": "a", "input": "hi"})
    assert (answer.status, answer.code) == (400, "invalid_request")


async def test_predict_streams(yard: LiveYard) -> None:
    body = {"prompt": "hi", "max_tokens": 3, "stream": True}
    async with yard.http.stream("POST", "/v1/models/a/predict", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-modelyard-version"].startswith("a@")
        text = "".join([piece async for piece in response.aiter_text()])
    assert text.rstrip().endswith("data: [DONE]")


async def test_prefetch_tells_of_each(yard: LiveYard) -> None:
    await two_versions(yard)
    names = ["a", "nobody", "b@2"]
    result = await ask(yard, "POST", "/v1/cache/prefetch?wait=true", {"models": names})
    rows = {one["model"]: one for one in result["models"]}
    assert list(rows) == names
    assert rows["nobody"]["outcome"] == "failed"
    assert rows["nobody"]["error"]["code"] == "model_not_found"
    assert {rows[name]["outcome"] for name in ("a", "b@2")} <= {"fetched", "present"}
    task = await ask(yard, "POST", "/v1/cache/prefetch", {"models": ["a"]}, 202)
    assert (await ended(yard, task["id"]))["result"]["models"][0]["model"] == "a"
    wrongs: tuple[dict[str, object], ...] = ({}, {"models": []}, {"models": "a"}, {"models": [""]})
    for wrong in (*wrongs, {"models": ["a"] * 101}):
        await refused(yard, "POST", "/v1/cache/prefetch", wrong, 400, "invalid_request")


async def test_audit(yard: LiveYard) -> None:
    await register(yard)
    await ask(yard, "PATCH", "/v1/models/b", {"pin": True})
    found = await ask(yard, "GET", "/v1/audit?model=b&limit=1")
    assert found["has_more"] is True
    (newest,) = found["data"]
    assert (newest["model"], newest["who"]) == ("b", "anybody")
    older = await ask(yard, "GET", f"/v1/audit?model=b&before={newest['id']}")
    assert [one["action"] for one in older["data"]] == ["register"]
    await refused(yard, "GET", "/v1/audit?before=0", None, 400, "invalid_request")


# -- tasks ----------------------------------------------------------------------------------------------


async def ended(yard: LiveYard, task: str) -> dict[str, Any]:
    """A task once it has ended."""
    found: dict[str, Any] = {}

    async def over() -> bool:
        found.update(await ask(yard, "GET", f"/v1/tasks/{task}"))
        return bool(found["state"] != "running")

    await until(over)
    return found


async def test_a_task_is_followed(yard: LiveYard) -> None:
    await two_versions(yard)
    task = await ask(yard, "POST", "/v1/models/b/promote", {"version": 2}, 202)
    events = []
    accept = {"accept": "text/event-stream"}
    async with yard.http.stream("GET", f"/v1/tasks/{task['id']}", headers=accept) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                events.append(line.removeprefix("event: "))
            elif line.startswith("data: "):
                assert json.loads(line.removeprefix("data: "))["id"] == task["id"]
    assert events[-1] == "done"
    assert set(events[:-1]) == {"progress"}
    listed = (await ask(yard, "GET", "/v1/tasks"))["data"]
    assert [(one["id"], one["state"]) for one in listed] == [(task["id"], "done")]


async def test_a_task_is_cancelled_and_nothing_has_changed(yard: LiveYard) -> None:
    await register(yard)
    slow = entry(parameters={"load_time": 30})
    await ask(yard, "POST", "/v1/models/b/versions", slow, 201)
    task = await ask(yard, "POST", "/v1/models/b/promote", {"version": 2}, 202)
    await until(lambda: len(yard.instances("b")) == 1)
    await ask(yard, "POST", f"/v1/tasks/{task['id']}/cancel")
    done = await ended(yard, task["id"])
    assert (done["state"], done["error"]["code"]) == ("cancelled", "task_cancelled")
    assert (await ask(yard, "GET", "/v1/models/b"))["modelyard"]["registered"]["number"] == 1
    await until(lambda: not yard.instances("b"))
    assert (await yard.chat("b")).status == 200


async def test_unknown_tasks(yard: LiveYard) -> None:
    await refused(yard, "GET", "/v1/tasks/nobody", None, 404, "task_not_found")
    await refused(yard, "POST", "/v1/tasks/nobody/cancel", None, 404, "task_not_found")


# -- access ---------------------------------------------------------------------------------------------

KEYS = [
    {"name": "user", "key": "u" * 20, "scopes": ["inference"]},
    {"name": "operator", "key": "o" * 20, "scopes": ["admin"]},
]


async def test_scopes() -> None:
    async with live_yard({"a": fake()}, keys=KEYS) as yard:
        user, operator = ({"authorization": f"Bearer {key['key']}"} for key in KEYS)
        body = {"name": "b", **entry()}
        for method, path, sent, needs in (
            ("POST", "/v1/models", body, operator),
            ("GET", "/v1/models/b", None, user),
            ("GET", "/v1/models/b/versions", None, user),
            ("PATCH", "/v1/models/b", {"pin": False}, operator),
            ("POST", "/v1/models/b/predict", {"prompt": "hi"}, user),
            ("PUT", "/v1/models/b/tags/predict", {"version": 1}, operator),
            ("DELETE", "/v1/models/b/tags/predict", None, operator),
            ("POST", "/v1/models/b/promote", {"version": 1}, operator),
            ("POST", "/v1/cache/prefetch", {"models": ["a"]}, operator),
            ("GET", "/v1/audit", None, operator),
        ):
            other = user if needs is operator else operator
            for headers, allowed in ((other, False), (needs, True)):
                response = await yard.http.request(method, path, json=sent, headers=headers)
                assert (response.status_code == 403) != allowed, (method, path, response.text)
                assert not allowed or response.is_success, (method, path, response.text)
        for headers in (user, operator):
            assert (await yard.http.get("/v1/tasks", headers=headers)).status_code == 200
        rows = (await yard.http.get("/v1/audit", headers=operator)).json()["data"]
        assert {one["who"] for one in rows} <= {"operator", "server"}
        for path in ("/v1/models/a%2Fpredict", "/v1/models/a/promote%2Fpredict"):
            response = await yard.http.post(path, json={"prompt": "x"}, headers=user)
            assert response.status_code == 405
        response = await yard.http.post("/v1/%6dodels/b/promote", json={"version": 1}, headers=user)
        assert response.status_code == 403
