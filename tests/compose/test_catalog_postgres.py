"""A registry in PostgreSQL: shared by servers, and away for a while."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.live_yard import LiveYard, fake, live_yard
from modelyard.compose import upkeep
from registry.postgres import Postgres
from waiting import until


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LOOK_EVERY", 0.1)


async def register(yard: LiveYard, name: str) -> int:
    return (await yard.post("/v1/models", {"name": name, **fake()})).status


async def served(yard: LiveYard, name: str) -> bool:
    return (await yard.chat(name)).status == 200


async def test_what_one_server_registers_another_serves(postgres: Postgres) -> None:
    settings = {"registry": {"database_url": postgres.emptied()}}
    async with live_yard({"a": fake()}, **settings) as one, live_yard({}, **settings) as other:
        assert await register(one, "m") == 201
        await until(lambda: served(other, "m"))
        versions = [(await yard.chat("m")).headers["x-modelyard-version"] for yard in (one, other)]
        assert versions[0] == versions[1]
        assert (await other.http.delete("/v1/models/m")).status_code in (202, 204)

        async def gone() -> bool:
            return not await served(one, "m")

        await until(gone)
        assert await served(one, "a")


async def test_a_name_that_another_server_s_file_has_is_left_out_there(postgres: Postgres) -> None:
    settings = {"registry": {"database_url": postgres.emptied()}}
    async with live_yard({"a": fake()}, **settings) as one, live_yard({}, **settings) as other:
        before = (await one.chat("a")).headers["x-modelyard-instance"]
        assert await register(other, "a") == 201
        assert await register(other, "m") == 201
        await until(lambda: served(one, "m"))
        assert (await one.chat("a")).headers["x-modelyard-instance"] == before
        shown = (await one.http.get("/v1/models/a")).json()
        assert shown["modelyard"]["owner"] == "file"
        assert await register(one, "n") == 201
        listed = (await one.http.get("/v1/models?limit=10")).json()
        assert listed["has_more"] is False
        owners = {each["id"]: each["modelyard"]["owner"] for each in listed["data"]}
        assert owners == {"a": "file", "m": "registry", "n": "registry"}


async def test_while_it_is_away_what_is_known_is_served_and_nothing_changes(postgres: Postgres) -> None:
    async with live_yard({"a": fake()}, registry={"database_url": postgres.emptied()}) as yard:
        assert await register(yard, "m") == 201
        postgres.stop()
        try:
            assert await served(yard, "m")
            answer = await yard.post("/v1/models", {"name": "n", **fake()})
            assert (answer.status, answer.code) == (503, "registry_unavailable")
            assert not await served(yard, "n")

            async def degraded() -> bool:
                return bool((await yard.http.get("/health")).json().get("registry"))

            await until(degraded)
            assert (await yard.http.get("/health")).json()["status"] == "degraded"
            assert await served(yard, "a")
        finally:
            postgres.start()

        async def back() -> bool:
            found: object = (await yard.http.get("/health")).json()
            return found == {"status": "ok"}

        await until(back)
        assert await register(yard, "n") == 201
        assert await served(yard, "n")


async def test_a_server_that_starts_while_it_is_away_serves_the_file_and_then_the_rest(
    postgres: Postgres,
) -> None:
    settings = {"registry": {"database_url": postgres.emptied()}}
    async with live_yard({}, **settings) as yard:
        assert await register(yard, "m") == 201
    postgres.stop()
    try:
        key = {"name": "boss", "key": "b" * 20, "scopes": ["inference", "admin"]}
        started = live_yard({"a": fake()}, keys=[key], **settings)
        yard = await started.__aenter__()
        yard.http.headers["x-api-key"] = "b" * 20
        assert await served(yard, "a")
        assert not await served(yard, "m")
    finally:
        postgres.start()
    await until(lambda: served(yard, "m"))
    await started.__aexit__(None, None, None)
