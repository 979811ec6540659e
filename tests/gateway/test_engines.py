"""Engine profiles that are made, changed and removed while the server runs."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from compose.live_files import file_yard
from compose.test_catalog import yard_in
from gateway.answers import Answer
from gateway.live_yard import SHARE, LiveYard, child_yard, fake, live_yard, short_folder
from modelyard.compose import upkeep
from modelyard.registry import NewVersion, Registry
from registry.postgres import Postgres
from waiting import until

MEMORY = {"memory": {"accelerator": SHARE}}
FILE: dict[str, Any] = {"engines": {"mine": {"type": "fake", "defaults": {"seed": 1}}}}


@pytest.fixture
async def yard() -> AsyncIterator[LiveYard]:
    async with live_yard({"a": {**fake(), "engine": "mine"}}, **FILE) as live:
        yield live


async def ask(yard: LiveYard, method: str, path: str, body: object = None, **headers: str) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await yard.http.request(method, path, json=body, headers=sent)
    return Answer(response.status_code, dict(response.headers), response.json() if response.content else {})


async def put(yard: LiveYard, name: str = "gpu", status: int = 201, **fields: Any) -> Answer:
    answer = await ask(yard, "PUT", f"/v1/engines/{name}", {"type": "fake", **fields})
    assert answer.status == status, answer.body
    return answer


async def register(yard: LiveYard, name: str = "m", engine: str = "gpu", **fields: Any) -> Answer:
    order = {"name": name, "engine": engine, "parameters": MEMORY, **fields}
    return await yard.post("/v1/models", order)


async def version(yard: LiveYard, name: str = "m") -> str:
    answer = await yard.chat(name)
    assert answer.status == 200, answer.body
    return answer.headers["x-modelyard-version"]


async def test_a_registered_profile_runs_registered_models(yard: LiveYard) -> None:
    refused = await register(yard)
    assert (refused.status, refused.code) == (422, "spec_refused")
    made = await put(yard, devices=["gpu0"], defaults={"seed": 7})
    assert made.headers["etag"] == '"1"'
    assert (await register(yard)).status == 201
    await version(yard)
    shown = await ask(yard, "GET", "/v1/engines/gpu")
    assert shown.headers["etag"] == '"1"'
    assert {**shown.body, "changed": None} == {
        "name": "gpu",
        "type": "fake",
        "owner": "registry",
        "place": "",
        "program": shown.body["program"],
        "environment": {},
        "devices": ["gpu0"],
        "exclusive": False,
        "placement": None,
        "defaults": {"seed": 7},
        "models": 1,
        "revision": 1,
        "changed": None,
        "changed_by": "anybody",
        "error": "",
        "verified": "real",
        "missing": "",
    }
    assert yard.yard.names.model("m").spec.parameters["seed"] == 7
    assert yard.yard.names.model("m").spec.devices == ("gpu0",)


async def test_a_registered_profile_may_have_a_device_alone() -> None:
    devices = {name: {"kind": "declared", "memory": 10 * SHARE} for name in ("gpu0", "gpu1")}
    async with live_yard({"a": fake()}, devices=devices) as yard:
        made = await put(yard, devices=["gpu0"], exclusive=True, placement="spread")
        assert (made.body["exclusive"], made.body["placement"]) == (True, "spread")
        assert (await register(yard, "m")).status == 201
        refused = await register(yard, "other", "fake", devices=["gpu0"])
        assert refused.status == 422
        assert refused.message == "devices: gpu0 is for the models of the engine profile 'gpu' alone"


async def test_all_are_listed_with_their_owner(yard: LiveYard) -> None:
    made = await put(yard, defaults={"api_key": "s3cret"})
    assert made.body["defaults"] == {"api_key": "…"}
    await register(yard, "m", "fake")
    listed = (await ask(yard, "GET", "/v1/engines")).body["data"]
    assert [(one["name"], one["owner"], one["models"]) for one in listed] == [
        ("fake", "engine", 1),
        ("gpu", "registry", 0),
        ("mine", "file", 1),
    ]


async def test_a_change_makes_new_versions_of_all_that_use_it(yard: LiveYard) -> None:
    await put(yard)
    for name in ("m", "n"):
        assert (await register(yard, name)).status == 201
    await register(yard, "other", "fake")
    names = ("m", "n", "other", "a")
    before = {name: yard.yard.names.model(name).spec.version for name in names}
    served = await version(yard)
    changed = await put(yard, status=200, defaults={"seed": 5})
    assert changed.headers["etag"] == '"2"'
    after = {name: yard.yard.names.model(name).spec.version for name in names}
    assert [name for name in names if before[name] != after[name]] == ["m", "n"]
    assert await version(yard) == after["m"] != served
    await put(yard, status=200)
    assert await version(yard) == served, "the same text is the same version"
    assert (await ask(yard, "GET", "/v1/models/m@1")).status == 200


async def test_what_models_cannot_be_run_with_is_refused(yard: LiveYard) -> None:
    await put(yard)
    await register(yard)
    before = await version(yard)
    for fields, said in (
        ({"devices": ["gpu9"]}, "models.m.devices: there is no device 'gpu9'"),
        ({"type": "nothing"}, "type: no engine 'nothing' is installed"),
        ({"defaults": {"memory": -1, "slotz": 1}}, "slotz"),
    ):
        refused = await put(yard, status=422, **fields)
        assert refused.code == "spec_refused"
        assert said in refused.message
    assert await version(yard) == before
    assert (await ask(yard, "GET", "/v1/engines/gpu")).body["revision"] == 1


@pytest.mark.parametrize(
    ("name", "fields", "status", "code"),
    [
        ("gpu", {"type": 1}, 400, "invalid_request"),
        ("gpu", {"slots": 1}, 400, "invalid_request"),
        ("gpu", {"devices": "a b"}, 400, "invalid_request"),
        ("gpu", {"environment": {"A-B": "x"}}, 400, "invalid_request"),
        ("a b", {}, 400, "invalid_request"),
        ("x" * 201, {}, 400, "invalid_request"),
        ("mine", {}, 409, "owned_by_file"),
        ("fake", {}, 409, "name_taken"),
        ("llamacpp", {}, 409, "name_taken"),
        ("gpu", {"program": "bin/engine"}, 422, "spec_refused"),
    ],
    ids=str,
)
async def test_wrong_orders_are_refused(
    yard: LiveYard, name: str, fields: dict[str, Any], status: int, code: str
) -> None:
    assert (await put(yard, name, status, **fields)).code == code
    assert [one["name"] for one in (await ask(yard, "GET", "/v1/engines")).body["data"]] == ["mine"]


async def test_a_profile_is_changed_at_the_revision_that_was_seen(yard: LiveYard) -> None:
    path, body = "/v1/engines/team/gpu", {"type": "fake"}
    for headers in ({"if_match": '"1"'}, {"if_match": "*"}):
        missing = await ask(yard, "PUT", path, body, **headers)
        assert (missing.status, missing.code) == (412, "revision_mismatch")
    assert (await ask(yard, "PUT", path, body, if_none_match="*")).status == 201
    again = await ask(yard, "PUT", path, body, if_none_match="*")
    assert (again.status, again.code) == (412, "revision_mismatch")
    assert (await ask(yard, "PUT", path, body, if_match='"1"')).headers["etag"] == '"2"'
    for method in ("PUT", "DELETE"):
        stale = await ask(yard, method, path, body, if_match='"1"')
        assert (stale.status, stale.code) == (412, "revision_mismatch")
    assert (await ask(yard, "DELETE", path, if_match='"2"')).status == 204
    assert (await ask(yard, "GET", path)).code == "engine_not_found"


async def test_one_that_is_used_stays(yard: LiveYard) -> None:
    await put(yard, defaults={"seed": 2})
    await register(yard, "m", "fake")
    added = await yard.post("/v1/models/m/versions", {"engine": "gpu", "parameters": MEMORY})
    assert added.status == 201
    used = await ask(yard, "DELETE", "/v1/engines/gpu")
    assert (used.status, used.code) == (409, "engine_in_use")
    assert "version 2 of m is run with gpu" in used.message
    assert (await yard.http.delete("/v1/models/m")).status_code in (202, 204)
    assert (await ask(yard, "DELETE", "/v1/engines/gpu")).status == 204
    for name, code in (("gpu", "engine_not_found"), ("mine", "owned_by_file")):
        assert (await ask(yard, "DELETE", f"/v1/engines/{name}")).code == code


async def test_one_is_not_used_and_removed_at_the_same_time() -> None:
    """By two servers of one database, before either has looked what the other did."""
    named = NewVersion({"engine": "gpu", "parameters": MEMORY}, "0" * 12, profiled=True)
    with short_folder() as folder:
        async with yard_in(folder, {}) as yard:
            other = Registry(folder / "data" / "registry.db")
            await put(yard, defaults={"seed": 3})
            await other.register("theirs", named, who="bob")
            used = await ask(yard, "DELETE", "/v1/engines/gpu")
            assert (used.status, used.code) == (409, "engine_in_use")
            await other.delete("theirs", who="bob")
            await register(yard, "old", "fake")
            await other.profiles.remove((await other.all()).profiles["gpu"], who="bob", at=1.0)
            order = {"engine": "gpu", "parameters": MEMORY}
            for late in (await register(yard), await yard.post("/v1/models/old/versions", order)):
                assert (late.status, late.code) == (422, "spec_refused")
                assert "'gpu' was removed meanwhile" in late.message
            await other.close()


async def test_programs_are_looked_for_once_each_beside_the_loop(
    yard: LiveYard, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[tuple[str, bool]] = []

    def which(program: str) -> str:
        looked.append((program, threading.current_thread() is threading.main_thread()))
        return f"/bin/{program}"

    for name in ("one", "two"):
        await put(yard, name, type="llamacpp")
    monkeypatch.setattr("shutil.which", which)
    listed = (await ask(yard, "GET", "/v1/engines")).body["data"]
    assert {one["program"] for one in listed if one["type"] == "llamacpp"} == {"/bin/llama-server"}
    assert len({program for program, _ in looked}) == len(looked)
    assert not any(on_loop for _, on_loop in looked)


async def test_what_is_missing_here_and_how_an_engine_is_verified(
    yard: LiveYard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    await put(yard, "own", type="command")
    shown = (await ask(yard, "GET", "/v1/engines/own")).body
    assert (shown["verified"], shown["missing"]) == ("real", "")
    order = {"name": "m", "engine": "own", "parameters": {"preset": "tgi"}}
    refused = await yard.post("/v1/models", order)
    assert (refused.status, refused.code) == (422, "spec_refused")
    assert "parameters.preset: says what is run on the server's machine" in refused.message


# -- what is run on the machine -------------------------------------------------------------------------

PROGRAMS = [{"program": "/bin/true"}, {"environment": {"TOKEN": "s3cret"}}]
EXTRA = {"type": "llamacpp", "defaults": {"extra_args": ["--verbose"]}}
READ: dict[str, Any] = {"type": "llamacpp", "defaults": {"chat_template": {"file": "/etc/passwd"}}}


@pytest.mark.parametrize("fields", [*PROGRAMS, EXTRA, READ], ids=str)
async def test_programs_are_said_in_files_alone_unless_they_allow_it(fields: dict[str, Any]) -> None:
    async with live_yard({}) as yard:
        refused = await put(yard, status=422, **fields)
        assert refused.code == "spec_refused"
        assert "says what is run on the server's machine" in refused.message
        assert "allow_programs: true" in refused.message
        assert (await ask(yard, "GET", "/v1/engines")).body["data"] == []
    async with live_yard({}, registry={"allow_programs": True}) as yard:
        made = await put(yard, **fields)
        assert "s3cret" not in str(made.body)
        assert made.body["environment"] == dict.fromkeys(fields.get("environment", {}), "…")
        audit = await yard.http.get("/v1/audit")
        assert "put_engine" in audit.text
        assert "s3cret" not in audit.text


@pytest.mark.parametrize(
    ("parameters", "refused"),
    [
        (EXTRA["defaults"], "extra_args"),
        (READ["defaults"], "chat_template.file"),
        ({"chat_template.file": "/etc/passwd"}, "chat_template.file"),
    ],
)
async def test_arguments_of_registered_models_likewise(
    tmp_path: Path, parameters: dict[str, Any], refused: str
) -> None:
    source = tmp_path / "m.gguf"
    source.write_bytes(b"GGUF")
    order = {
        "name": "m",
        "engine": "llamacpp",
        "source": str(source),
        "parameters": parameters,
    }
    for allowed in (False, True):
        async with live_yard({}, registry={"allow_programs": allowed}) as yard:
            answer = await yard.post("/v1/models", order)
            assert (f"{refused}: says what is run" not in answer.message) == allowed


async def test_what_was_allowed_once_is_not_run_where_it_is_not() -> None:
    """Another server of the same database, or this one after a restart."""
    with short_folder() as folder:
        async with child_yard(folder, {}, registry={"allow_programs": True}) as yard:
            body = {"type": "fake", "environment": {"A": "b"}}
            assert (await yard.http.put("/v1/engines/gpu", json=body)).status_code == 201
            for name, engine in (("m", "gpu"), ("n", "fake")):
                order = {"name": name, "engine": engine, "parameters": MEMORY}
                assert (await yard.post("/v1/models", order)).status == 201
        async with child_yard(folder, {}) as yard:
            assert "says what is run" in (await yard.http.get("/v1/engines/gpu")).json()["error"]
            assert (await yard.chat("m")).status in (404, 503)
            assert (await yard.chat("n")).status == 200
            assert "registry.unusable" in yard.output


async def test_a_file_is_refused_that_takes_away_what_is_used_or_its_name() -> None:
    async with file_yard({}, registry={"allow_programs": True}) as yard:
        await put(yard, environment={"A": "b"})
        await register(yard)
        before = await version(yard)
        for settings, said in (
            ({"registry": {}}, "engines.gpu.environment: says what is run"),
            ({"engines": {"gpu": {"type": "fake"}}}, "engines.gpu: is a name that the registry has as well"),
        ):
            refused = await yard.change({}, **settings)
            assert (refused.status, refused.code) == (400, "config_refused")
            assert said in refused.message
            assert await version(yard) == before
        await yard.unload("m", now=True)
        await yard.http.delete("/v1/models/m")
        assert (await ask(yard, "DELETE", "/v1/engines/gpu")).status == 204
        assert (await yard.change({}, registry={})).status == 200
        await put(yard, status=422, environment={"A": "b"})


# -- over restarts and servers --------------------------------------------------------------------------


async def test_profiles_outlast_the_server() -> None:
    with short_folder() as folder:
        async with child_yard(folder, {}) as yard:
            body = {"type": "fake", "defaults": {"seed": 3}}
            assert (await yard.http.put("/v1/engines/gpu", json=body)).status_code == 201
            order = {"name": "m", "engine": "gpu", "parameters": MEMORY}
            assert (await yard.post("/v1/models", order)).status == 201
            before = (await yard.chat("m")).headers["x-modelyard-version"]
        async with child_yard(folder, {}) as yard:
            assert (await yard.chat("m")).headers["x-modelyard-version"] == before


@pytest.fixture(scope="module")
def postgres() -> Any:
    server = Postgres()
    yield server
    server.remove()


async def test_other_servers_take_a_change(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LOOK_EVERY", 0.1)
    settings: dict[str, Any] = {"registry": {"database_url": postgres.emptied()}}
    async with live_yard({}, **settings) as one, live_yard({}, **settings) as other:
        await put(one)
        await register(one)
        await until(lambda: "m" in {entry.spec.model for entry in other.yard.names.all()})
        assert await version(one) == await version(other)
        await put(one, status=200, defaults={"seed": 9})
        changed = one.yard.names.model("m").spec.version
        await until(lambda: other.yard.names.model("m").spec.version == changed)
        assert await version(other) == changed
        postgres.stop()
        try:
            away = await put(one, status=503)
            assert away.code == "registry_unavailable"
            assert await version(one) == changed
        finally:
            postgres.start()
