"""Keys that are made and removed while the server runs, asked for through real sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from compose.live_files import file_yard
from gateway.answers import Answer
from gateway.live_yard import (
    DEADLINE,
    LiveYard,
    body_of,
    child_yard,
    fake,
    live_yard,
    sections,
    short_folder,
)
from gateway.test_access import bearer
from modelyard import compose, config
from modelyard.compose import additions, upkeep
from modelyard.config.problems import ConfigErrors
from registry.postgres import Postgres
from waiting import until

CHAT = "/v1/chat/completions"
BOSS = "b" * 20
BOSS_KEY = {"name": "boss", "key": BOSS, "scopes": ["inference", "admin"], "max_priority": "high"}
FILE: dict[str, Any] = {"keys": [BOSS_KEY]}


@pytest.fixture(scope="module")
def postgres() -> Any:
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture
async def yard() -> AsyncIterator[LiveYard]:
    """Without a key; whatever is made is removed in the end."""
    async with live_yard({"a": fake()}) as yard:
        yield yard


async def ask(yard: LiveYard, method: str, path: str, body: object = None, *, key: str = "") -> Answer:
    response = await yard.http.request(method, path, json=body, headers=bearer(key) if key else {})
    return Answer(response.status_code, dict(response.headers), response.json() if response.content else {})


async def make(yard: LiveYard, name: str, *scopes: str, key: str = "", **more: object) -> str:
    """A new key's secret."""
    order = {"name": name, "scopes": list(scopes or ("inference", "admin")), **more}
    answer = await ask(yard, "POST", "/v1/keys", order, key=key)
    assert answer.status == 201, answer.body
    assert answer.headers["cache-control"] == "no-store"
    secret: str = answer.body["key"]
    return secret


async def may(yard: LiveYard, key: str, path: str = "/v1/models") -> bool:
    answer = await ask(yard, "GET", path, key=key)
    assert answer.status in (200, 401, 403), answer.body
    return answer.status == 200


async def names(yard: LiveYard, key: str) -> dict[str, str]:
    """The owners of all keys."""
    listed = (await ask(yard, "GET", "/v1/keys", key=key)).body["data"]
    return {one["name"]: one["owner"] for one in listed}


async def test_the_first_key_closes_the_door_and_the_last_one_opens_it_again(yard: LiveYard) -> None:
    assert await may(yard, "")
    boss = await make(yard, "boss")
    assert boss.startswith("my-")
    assert len(boss) == len("my-") + 43
    assert not await may(yard, "")
    assert not await may(yard, f"{boss}x")
    assert await may(yard, boss, "/admin/status")
    app = await make(yard, "team/app", "inference", key=boss, max_priority="low")
    assert await may(yard, app)
    refused = await ask(yard, "GET", "/admin/status", key=app)
    assert (refused.status, refused.code) == (403, "forbidden")
    assert "'team/app' has no scope 'admin'" in refused.message
    asked = await yard.http.post(CHAT, json={"model": "a"}, headers={**bearer(app), "x-priority": "normal"})
    assert asked.status_code == 403
    assert await names(yard, boss) == {"boss": "registry", "team/app": "registry"}
    assert (await ask(yard, "DELETE", "/v1/keys/team%2Fapp", key=boss)).status == 204
    assert not await may(yard, app), "also its header, which was known to be right"
    assert (await ask(yard, "DELETE", "/v1/keys/boss", key=boss)).status == 204
    assert await may(yard, "")


async def test_a_secret_is_told_once_and_kept_nowhere(yard: LiveYard) -> None:
    boss = await make(yard, "boss")
    assert await may(yard, boss)
    for path in ("/v1/keys", "/v1/audit"):
        told = await yard.http.get(path, headers=bearer(boss))
        assert told.status_code == 200
        assert "boss" in told.text
        assert boss not in told.text
    data = yard.socket.parent / "data"
    files = [path for path in data.rglob("*") if path.is_file()]
    assert data / "registry.db" in files
    assert not any(boss.encode() in path.read_bytes() for path in files)
    await yard.http.delete("/v1/keys/boss", headers=bearer(boss))


async def test_who_made_it_and_when_is_said(yard: LiveYard) -> None:
    before = time.time()
    boss = await make(yard, "boss")
    made = await ask(yard, "POST", "/v1/keys", {"name": "app", "expires_in": "1d"}, key=boss)
    view = {name: value for name, value in made.body.items() if name != "key"}
    assert view.pop("created") == pytest.approx(before, abs=DEADLINE)
    assert view.pop("expires") == pytest.approx(before + 86400, abs=DEADLINE)
    assert view == {
        "name": "app",
        "scopes": ["inference"],
        "max_priority": "normal",
        "owner": "registry",
        "created_by": "boss",
        "error": "",
    }
    logged = (await ask(yard, "GET", "/v1/audit", key=boss)).body["data"]
    assert [(one["who"], one["action"]) for one in logged] == [("boss", "add_key"), ("anybody", "add_key")]
    for name in ("app", "boss"):
        await yard.http.delete(f"/v1/keys/{name}", headers=bearer(boss))


async def test_nobody_is_locked_out(yard: LiveYard) -> None:
    for order in ({"scopes": ["inference"]}, {"scopes": ["admin"], "expires_in": "1d"}):
        answer = await ask(yard, "POST", "/v1/keys", {"name": "first", **order})
        assert (answer.status, answer.code) == (409, "would_lock_out")
        assert "scope admin and not to expire" in answer.message
    assert await may(yard, "")
    boss = await make(yard, "boss", "admin")
    await make(yard, "app", "inference", key=boss)
    await make(yard, "guest", "admin", key=boss, expires_in="1h")
    refused = await ask(yard, "DELETE", "/v1/keys/boss", key=boss)
    assert (refused.status, refused.code) == (409, "would_lock_out")
    assert await may(yard, boss, "/admin/status")
    second = await make(yard, "second", "admin", key=boss)
    assert (await ask(yard, "DELETE", "/v1/keys/boss", key=boss)).status == 204
    assert not await may(yard, boss, "/admin/status")
    for name in ("app", "guest", "second"):
        assert (await ask(yard, "DELETE", f"/v1/keys/{name}", key=second)).status == 204


async def test_a_key_of_the_file_counts_and_is_changed_there() -> None:
    async with live_yard({"a": fake()}, **FILE) as yard:
        app = await make(yard, "app", "inference", key=BOSS)
        assert await may(yard, app)
        assert await names(yard, BOSS) == {"boss": "file", "app": "registry"}
        taken = await ask(yard, "POST", "/v1/keys", {"name": "boss"}, key=BOSS)
        assert (taken.status, taken.code) == (409, "name_taken")
        owned = await ask(yard, "DELETE", "/v1/keys/boss", key=BOSS)
        assert (owned.status, owned.code) == (409, "owned_by_file")
        for path in ("/v1/keys", "/v1/keys/app"):
            method = "POST" if path == "/v1/keys" else "DELETE"
            assert (await ask(yard, method, path, {"name": "x"}, key=app)).status == 403
        assert (await ask(yard, "GET", "/v1/keys", key=app)).status == 403


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"name": ""},
        {"name": "a b"},
        {"name": "a\n"},
        {"name": "x" * 201},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["root"]},
        {"name": "x", "scopes": ["admin"] * 3},
        {"name": "x", "max_priority": "urgent"},
        {"name": "x", "expires_in": 0},
        {"name": "x", "expires_in": -1},
        {"name": "x", "expires_in": "forever"},
        {"name": "x", "expires_in": "400d"},
        {"name": "x", "key": "mine"},
    ],
    ids=str,
)
async def test_wrong_orders_are_refused(order: dict[str, object]) -> None:
    async with live_yard({}, **FILE) as yard:
        answer = await ask(yard, "POST", "/v1/keys", order, key=BOSS)
        assert (answer.status, answer.code) == (400, "invalid_request"), answer.body
        assert await names(yard, BOSS) == {"boss": "file"}


async def test_one_name_is_one_key() -> None:
    async with live_yard({}, **FILE) as yard:
        app = await make(yard, "app", key=BOSS)
        taken = await ask(yard, "POST", "/v1/keys", {"name": "app"}, key=BOSS)
        assert (taken.status, taken.code) == (409, "name_taken")
        missing = await ask(yard, "DELETE", "/v1/keys/nobody", key=BOSS)
        assert (missing.status, missing.code) == (404, "key_not_found")
        assert await may(yard, app)


async def test_a_key_ends_when_its_time_is_over() -> None:
    async with live_yard({"a": fake()}, **FILE) as yard:
        guest = await make(yard, "guest", "inference", "admin", key=BOSS, expires_in=3.0)
        end = time.time() + 3.0
        async with yard.http.stream("GET", "/admin/events", headers=bearer(guest)) as events:
            assert await may(yard, guest)
            assert time.time() < end
            async with asyncio.timeout(DEADLINE):
                async for _ in events.aiter_text():
                    pass
        assert time.time() >= end
        refused = await ask(yard, "GET", "/v1/models", key=guest)
        assert (refused.status, refused.code, refused.message) == (
            401,
            "invalid_api_key",
            "The API key has expired.",
        )
        assert (await names(yard, BOSS))["guest"] == "registry"
        assert (await ask(yard, "DELETE", "/v1/keys/guest", key=BOSS)).status == 204


async def test_who_follows_with_a_key_that_is_removed_is_cut() -> None:
    async with live_yard({"a": fake()}, **FILE) as yard:
        guest = await make(yard, "guest", "admin", key=BOSS)
        async with (
            yard.http.stream("GET", "/admin/events", headers=bearer(BOSS)) as others,
            yard.http.stream("GET", "/admin/events", headers=bearer(guest)) as events,
        ):
            assert (await ask(yard, "DELETE", "/v1/keys/guest", key=BOSS)).status == 204
            async with asyncio.timeout(DEADLINE):
                async for _ in events.aiter_text():
                    pass
                lines = others.aiter_lines()
                assert await anext(lines) == ": events"
                await yard.http.post("/admin/models/a/load", headers=bearer(BOSS))
                assert "event: start" in [await anext(lines) for _ in range(2)]


async def test_a_request_that_was_let_in_is_served_though_its_key_goes_meanwhile() -> None:
    guest = {"name": "guest", "key": "g" * 20, "scopes": ["inference"], "max_priority": "high"}
    slow = fake(parameters={"load_time": 1.0})
    async with file_yard({"a": slow}, keys=[guest, BOSS_KEY]) as yard:
        sent = {**bearer("g" * 20), "x-priority": "high"}
        waiting = asyncio.create_task(yard.post(CHAT, body_of("a", "hi", 4, False, {}), **sent))
        await until(lambda: yard.waiting() == 1)
        yard.http.headers.update(bearer(BOSS))
        changed = await yard.change({"a": fake(slots=2)}, keys=[BOSS_KEY])
        assert changed.status == 200, changed.body
        answer = await waiting
        assert (answer.status, answer.code) == (200, "")
        assert (await yard.post(CHAT, body_of("a", "hi", 4, False, {}), **sent)).status == 401


async def test_who_follows_is_not_cut_when_the_registry_is_read_anew(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "LOOK_EVERY", 0.1)
    settings: dict[str, Any] = {"registry": {"database_url": postgres.emptied()}, **FILE}
    async with live_yard({}, **settings) as one, live_yard({}, **settings) as other:
        for name in ("z", "a"):
            await make(one, name, key=BOSS)
        before = one.yard.live.keys
        order = {"name": "m", **fake()}
        assert (await ask(other, "POST", "/v1/models", order, key=BOSS)).status == 201
        await until(lambda: len(one.yard.names.all()) == 1)
        assert one.yard.live.keys == before


# -- over restarts and servers --------------------------------------------------------------------------


async def test_keys_outlast_the_server_and_a_file_may_not_name_them_too() -> None:
    with short_folder() as folder:
        async with child_yard(folder, {"a": fake()}) as first:
            made = await first.post("/v1/keys", {"name": "boss", "scopes": ["admin"]})
            boss = made.body["key"]
            file = folder / "modelyard.yaml"
            before = file.read_text()
            file.write_text(f"{before}\nkeys: [{{name: boss, key: other, scopes: admin}}]\n")
            refused = await first.http.post("/admin/config", json={}, headers=bearer(boss))
            assert refused.status_code == 400, refused.text
            assert "keys.boss: is a name that the registry has as well" in refused.json()["error"]["message"]
            file.write_text(before)
        async with child_yard(folder, {"a": fake()}) as second:
            assert (await second.http.get("/admin/status")).status_code == 401
            assert (await second.http.get("/admin/status", headers=bearer(boss))).status_code == 200
        with pytest.raises(AssertionError, match="is a name that the registry has as well"):
            async with child_yard(folder, {}, keys=[{**BOSS_KEY, "name": "boss"}]):
                pass


async def test_other_servers_take_what_one_has_changed(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "LOOK_EVERY", 0.1)
    settings: dict[str, Any] = {"registry": {"database_url": postgres.emptied()}}
    async with live_yard({}, **settings, **FILE) as one, live_yard({}, **settings) as other:
        secret = await make(one, "app", key=BOSS)
        await make(one, "spare", key=BOSS)

        async def taken() -> bool:
            return await may(other, secret) and not await may(other, "")

        await until(taken)
        assert (await ask(one, "DELETE", "/v1/keys/app", key=BOSS)).status == 204
        assert not await may(one, secret)

        async def gone() -> bool:
            return not await may(other, secret)

        await until(gone)


async def test_a_name_that_another_server_s_file_has_is_left_out_there(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "LOOK_EVERY", 0.1)
    settings: dict[str, Any] = {"registry": {"database_url": postgres.emptied()}}
    async with live_yard({}, **settings, **FILE) as one, live_yard({}, **settings) as other:
        secret = await make(other, "boss")
        second = await make(other, "second", key=secret)
        await until(lambda: may(one, second))
        assert await may(one, BOSS)
        assert not await may(one, secret)


async def test_while_the_database_is_away_known_keys_open_and_none_is_made(postgres: Postgres) -> None:
    async with live_yard({"a": fake()}, registry={"database_url": postgres.emptied()}) as yard:
        boss = await make(yard, "boss")
        postgres.stop()
        try:
            assert await may(yard, boss)
            assert not await may(yard, "")
            for method, path in (("POST", "/v1/keys"), ("DELETE", "/v1/keys/boss")):
                answer = await ask(
                    yard, method, path, {"name": "app"} if method == "POST" else None, key=boss
                )
                assert (answer.status, answer.code) == (503, "registry_unavailable")
            assert await names(yard, boss) == {"boss": "registry"}
            assert await may(yard, boss)
        finally:
            postgres.start()


async def test_a_start_without_the_database_does_not_open_what_keys_closed(postgres: Postgres) -> None:
    settings: dict[str, Any] = {"registry": {"database_url": postgres.emptied()}}
    with short_folder() as folder:
        async with child_yard(folder, {}, **settings) as yard:
            boss = (await yard.post("/v1/keys", {"name": "boss", "scopes": ["admin"]})).body["key"]
        postgres.stop()
        try:
            with pytest.raises(AssertionError, match="its keys are not known then"):
                async with child_yard(folder, {}, **settings):
                    pass
            async with child_yard(folder, {}, **settings, **FILE) as yard:
                assert (await yard.http.get("/v1/models", headers=bearer(boss))).status_code == 401
                assert (await yard.http.get("/v1/models", headers=bearer(BOSS))).status_code == 200
        finally:
            postgres.start()
        async with child_yard(folder, {}, **settings) as yard:
            gone = await yard.http.delete("/v1/keys/boss", headers=bearer(boss))
            assert gone.status_code == 204
        postgres.stop()
        try:
            async with child_yard(folder, {}, **settings) as yard:
                assert (await yard.http.get("/v1/models")).status_code == 200
        finally:
            postgres.start()


async def test_a_first_start_without_the_database_lets_nobody_in(postgres: Postgres) -> None:
    settings: dict[str, Any] = {"registry": {"database_url": postgres.emptied()}}
    postgres.stop()
    try:
        with short_folder() as folder, pytest.raises(AssertionError, match="its keys are not known then"):
            async with child_yard(folder, {}, **settings):
                pass
    finally:
        postgres.start()


async def test_a_file_s_keys_do_not_go_while_those_of_the_database_are_not_known(postgres: Postgres) -> None:
    registry = {"database_url": postgres.emptied()}
    postgres.stop()
    try:
        async with file_yard({}, registry=registry, keys=[BOSS_KEY]) as yard:
            yard.http.headers.update(bearer(BOSS))
            refused = await yard.change({}, keys=[])
            assert (refused.status, refused.code) == (400, "config_refused")
            assert "its keys are not known then" in refused.message
            yard.http.headers.clear()
            assert not await may(yard, "")
            assert await may(yard, BOSS)
    finally:
        postgres.start()


async def test_a_kill_after_the_first_key_was_committed_leaves_no_door_open(
    yard: LiveYard, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = yard.yard.config.server.data_dir / additions.MARK
    assert note.exists()
    with monkeypatch.context() as killed:
        killed.setattr(upkeep, "remember_keys", lambda *_: None)
        refused = await ask(yard, "POST", "/v1/keys", {"name": "app"})
        assert refused.status == 409
        assert note.exists()
        boss = await make(yard, "boss")
        assert not note.exists()
    await ask(yard, "DELETE", "/v1/keys/boss", key=boss)
    assert note.exists()


async def test_no_key_is_made_where_a_start_could_not_know_of_it(yard: LiveYard) -> None:
    note = yard.yard.config.server.data_dir / additions.MARK
    note.unlink()
    note.mkdir()  # which cannot be removed as a file
    refused = await ask(yard, "POST", "/v1/keys", {"name": "boss", "scopes": ["admin"]})
    assert (refused.status, refused.code) == (503, "registry_unavailable")
    assert "registry.open cannot be removed" in refused.message
    assert await names(yard, "") == {}
    assert await may(yard, "")


# -- beyond loopback ------------------------------------------------------------------------------------


@asynccontextmanager
async def exposed(folder: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that listens on all addresses, with the data of `folder`."""
    where = {"unix": None, "host": "0.0.0.0", "port": 0}
    yard = await compose.build(config.load(None, sections(folder, {}, server=where, **settings)))
    try:
        address = await yard.start()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{address.port}") as http:
            yield http
    finally:
        await yard.close()


async def test_beyond_loopback_a_key_of_the_registry_is_enough() -> None:
    with short_folder() as folder:
        async with child_yard(folder, {}) as local:
            boss = (await local.post("/v1/keys", {"name": "boss", "scopes": ["admin"]})).body["key"]
        async with exposed(folder) as http:
            assert (await http.get("/admin/status")).status_code == 401
            http.headers.update(bearer(boss))
            assert (await http.get("/admin/status")).status_code == 200
            refused = await http.delete("/v1/keys/boss")
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "would_lock_out")
            assert "beyond loopback" in refused.json()["error"]["message"]
            assert (await http.get("/admin/status")).status_code == 200
        async with child_yard(folder, {}) as local:
            gone = await local.http.delete("/v1/keys/boss", headers=bearer(boss))
            assert gone.status_code == 204
        with pytest.raises(ConfigErrors, match="beyond loopback and there are no `keys:`"):
            async with exposed(folder):
                pass


async def test_beyond_loopback_nobody_comes_in_when_another_server_removes_the_last_key(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "LOOK_EVERY", 0.1)
    settings: dict[str, Any] = {"registry": {"database_url": postgres.emptied()}}
    async with live_yard({}, **settings) as local:
        boss = await make(local, "boss")
        with short_folder() as folder:
            async with exposed(folder, **settings) as http:
                assert (await http.get("/admin/status", headers=bearer(boss))).status_code == 200
                assert (await ask(local, "DELETE", "/v1/keys/boss", key=boss)).status == 204

                async def closed() -> bool:
                    return (await http.get("/admin/status", headers=bearer(boss))).status_code == 401

                await until(closed)
                assert (await http.get("/admin/status")).status_code == 401
                assert (await http.get("/health")).status_code == 200


async def test_beyond_loopback_a_database_that_is_away_is_no_key(postgres: Postgres) -> None:
    url = postgres.emptied()
    async with live_yard({}, registry={"database_url": url}) as local:
        await make(local, "boss")
    postgres.stop()
    try:
        with short_folder() as folder, pytest.raises(ConfigErrors, match="beyond loopback"):
            async with exposed(folder, registry={"database_url": url}):
                pass
    finally:
        postgres.start()
