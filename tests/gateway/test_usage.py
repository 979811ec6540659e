"""Usage and prices through the whole server: counted, kept, told to those who may know, and not lost."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.live_yard import LiveYard, child_yard, fake, live_yard, short_folder
from gateway.test_access import ADMIN, BOTH, KEYS, USER, bearer
from gateway.test_registry import ask, refused
from modelyard.compose import keeping, upkeep
from modelyard.compose.keeping import Keeping
from modelyard.telemetry.usage import MOST_TOKENS
from waiting import until

PRICE = {"input": 1000.0, "output": 500_000, "load": 7}
AS_ADMIN = {"authorization": f"Bearer {ADMIN}"}


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept within a moment."""
    monkeypatch.setattr(keeping, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(upkeep, "LOOK_EVERY", 0.05)


async def rows(yard: LiveYard, query: str = "", **headers: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await ask(yard, "GET", f"/v1/usage?{query}", None, 200, **headers))["data"]
    return found


async def kept(yard: LiveYard, requests: int, query: str = "", **headers: str) -> dict[str, Any]:
    """The sum of everything, once it is of so many requests."""

    async def is_there() -> bool:
        (found,) = await rows(yard, query, **headers)
        return bool(found["requests"] >= requests)

    await until(is_there)
    (found,) = await rows(yard, query, **headers)
    assert found["requests"] == requests
    return found


class TestCounting:
    async def test_of_requests_tokens_time_loads_and_cost(self) -> None:
        async with live_yard({"a": fake(price=PRICE)}) as yard:
            slowly = {"tokens_per_second": 20}
            answers = [await yard.chat("a", tokens=4), await yard.chat("a", tokens=8, fake=slowly)]
            told = [answer.body["usage"] for answer in answers]
            read = sum(one["prompt_tokens"] for one in told)
            found = await kept(yard, 2)
            assert found["failed"] == 0
            assert (found["input_tokens"], found["output_tokens"], found["loads"]) == (read, 12, 1)
            assert 0.2 < found["seconds"] < 20
            assert found["cost"] == pytest.approx(read * 1e-3 + 12 * 0.5 + 7)

    async def test_of_failures_and_of_clients_that_leave(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            assert (await yard.chat("a", tokens=4)).status == 200
            assert (await yard.post("/v1/chat/completions", {"model": "a", "messages": 1})).status == 400
            assert (await yard.post("/v1/chat/completions", {"model": "none", "messages": []})).status == 404
            async with yard.open_stream("a", tokens=10_000, fake={"tokens_per_second": 20}) as (_, more):
                await anext(more)
            await yard.settled()
            found = await kept(yard, 3)
            assert (found["failed"], found["output_tokens"]) == (1, 4)

    async def test_of_streams_as_far_as_the_engine_says_it(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.stream("a", tokens=5, stream_options={"include_usage": True})
            assert (await kept(yard, 1))["output_tokens"] == 5

    async def test_by_model_version_key_and_hour(self) -> None:
        models = {"a": fake(aliases=["short"]), "b": fake()}
        async with live_yard(models) as yard:
            for name in ("a", "short", "b"):
                assert (await yard.chat(name)).status == 200
            await kept(yard, 3)
            by_model = await rows(yard, "by=model")
            assert [(one["model"], one["requests"], one["loads"]) for one in by_model] == [
                ("a", 2, 1),
                ("b", 1, 1),
            ]
            (version,) = await rows(yard, "by=version&by=key&model=a")
            assert (version["version"], version["key"]) == (yard.yard.names.model("a").spec.version, "")
            (hour,) = {one["hour"] for one in await rows(yard, "by=hour&by=model")}
            assert hour % 3600 == 0
            assert await rows(yard, f"by=model&since={hour + 3600}") == []
            assert await rows(yard, f"by=model&until={hour}") == []
            assert len(await rows(yard, f"by=model&since={hour + 60}&until={hour + 60}")) == 2
            first = await ask(yard, "GET", "/v1/usage?by=model&limit=1")
            assert (len(first["data"]), first["has_more"]) == (1, True)
            second = await ask(yard, "GET", "/v1/usage?by=model&limit=1&offset=1")
            assert ([one["model"] for one in second["data"]], second["has_more"]) == (["b"], False)

    @pytest.mark.parametrize(
        "query", ["by=colour", "since=nan", "since=-1", "limit=0", "limit=1001", "offset=-1"]
    )
    async def test_what_is_asked_wrongly_is_refused(self, query: str) -> None:
        async with live_yard({"a": fake()}) as yard:
            await refused(yard, "GET", f"/v1/usage?{query}", None, 400, "invalid_request")


class TestKeys:
    @pytest.fixture
    async def yard(self) -> AsyncIterator[LiveYard]:
        async with live_yard({"a": fake()}, keys=KEYS) as live:
            for key in (USER, BOTH, BOTH):
                body = {"model": "a", "messages": [{"role": "user", "content": "hi"}]}
                assert (await live.post("/v1/chat/completions", body, **bearer(key))).status == 200
            await kept(live, 3, **AS_ADMIN)
            yield live

    async def test_with_the_scope_admin_see_all(self, yard: LiveYard) -> None:
        for key in (ADMIN, BOTH):
            found = await rows(yard, "by=key", **bearer(key))
            assert [(one["key"], one["requests"], one["loads"]) for one in found] == [
                ("", 0, 1),
                ("both", 2, 0),
                ("user", 1, 0),
            ]
        assert [one["key"] for one in await rows(yard, "by=key&key=user", **AS_ADMIN)] == ["user"]

    async def test_without_it_see_their_own(self, yard: LiveYard) -> None:
        mine = [("user", 1)]
        for query in ("by=key", "by=key&key=user"):
            found = await rows(yard, query, **bearer(USER))
            assert [(one["key"], one["requests"]) for one in found] == mine
        for key in ("both", ""):
            await refused(yard, "GET", f"/v1/usage?key={key}", None, 403, "forbidden", **bearer(USER))
        await refused(yard, "GET", "/v1/usage", None, 401, "invalid_api_key")


class TestPrices:
    async def test_are_shown_and_change_while_the_server_runs(self) -> None:
        async with live_yard(
            {"a": fake(price={"output": 1_000_000})}, defaults={"price": {"load": 5}}
        ) as yard:
            spec = fake()
            made = await ask(yard, "POST", "/v1/models", {"name": "b", **spec}, 201)
            assert made["modelyard"]["price"] == {"input": 0.0, "output": 0.0, "load": 5.0}
            listed = (await ask(yard, "GET", "/v1/models"))["data"]
            assert [one["modelyard"]["price"]["output"] for one in listed] == [1e6, 0.0]
            await yard.chat("b", tokens=4)
            assert (await kept(yard, 1, "model=b"))["cost"] == 5
            pid = yard.pids("b")
            changed = await ask(yard, "PATCH", "/v1/models/b", {"price": {"output": 1_000_000}})
            assert changed["modelyard"]["price"] == {"input": 0.0, "output": 1e6, "load": 0.0}
            await yard.chat("b", tokens=4)
            assert (await kept(yard, 2, "model=b"))["cost"] == pytest.approx(5 + 4), "the old stays as it was"
            assert yard.pids("b") == pid
            back = await ask(yard, "PATCH", "/v1/models/b", {"price": None})
            assert back["modelyard"]["price"]["load"] == 5

    async def test_of_a_version_beside_the_current_one_are_those_of_its_model(self) -> None:
        async with live_yard({}) as yard:
            await ask(yard, "POST", "/v1/models", {"name": "b", **fake(price={"load": 3})}, 201)
            await ask(yard, "POST", "/v1/models/b/versions", fake(parameters={"seed": 2}), 201)
            assert (await yard.chat("b@2")).status == 200
            await ask(yard, "PATCH", "/v1/models/b", {"price": {"output": 1_000_000}})
            assert (await yard.chat("b@2", tokens=4)).status == 200
            assert (await kept(yard, 2))["cost"] == pytest.approx(3 + 4)

    @pytest.mark.parametrize(
        "price", [{"input": -1}, {"input": "much"}, {"in": 1}, {"load": 1e12}, 5, {"load": True}]
    )
    async def test_that_are_none_are_refused(self, price: object) -> None:
        async with live_yard({}) as yard:
            error = await refused(
                yard, "POST", "/v1/models", {"name": "b", **fake(), "price": price}, 422, "spec_refused"
            )
            assert error["param"].startswith("price")


class TestKeeping:
    async def test_what_was_kept_outlives_a_kill(self, folder: Path) -> None:
        async with child_yard(folder, {"a": fake()}) as yard:
            assert (await yard.chat("a")).status == 200

            async def is_kept() -> bool:
                return bool((await yard.http.get("/v1/usage")).json()["data"][0]["requests"])

            await until(is_kept)
            yard.signal(signal.SIGKILL)
            await yard.exited()
        async with child_yard(folder, {"a": fake()}) as yard:
            found = (await yard.http.get("/v1/usage")).json()["data"][0]
            assert (found["requests"], found["loads"]) == (1, 1)

    async def test_what_was_not_kept_yet_is_at_the_end(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keeping, "LOOK_EVERY", 1000.0)
        server = {"data_dir": str(folder / "d")}
        async with live_yard({"a": fake()}, server=server) as yard:
            assert (await yard.chat("a")).status == 200
            assert (await rows(yard))[0]["requests"] == 0
        async with live_yard({"a": fake()}, server=server) as yard:
            assert (await rows(yard))[0]["requests"] == 1

    async def test_of_two_servers_of_one_database_is_one(self, folder: Path) -> None:
        registry = {"database_url": f"sqlite:///{folder}/shared.db"}
        async with (
            live_yard({"a": fake()}, registry=registry) as one,
            live_yard({"a": fake()}, registry=registry) as other,
        ):
            assert (await one.chat("a")).status == (await other.chat("a")).status == 200
            assert (await kept(one, 2))["loads"] == 2

    async def test_a_count_that_no_engine_can_mean_stops_nothing(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            keeper: Keeping = yard.yard.keeping
            entry = yard.yard.names.model("a")
            keeper._usage.ended(
                "",
                "a",
                entry.spec.version,
                entry.price,
                failed=False,
                input_tokens=2**64 - 1,
                output_tokens=0,
                seconds=0.0,
            )
            assert (await kept(yard, 1))["input_tokens"] == MOST_TOKENS
