"""The configuration changes while it is served: what each change touches, and what it leaves alone."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from compose.live_files import file_yard
from gateway.live_yard import MB, SHARE, fake, right_text
from modelyard.core.types import Priority
from modelyard.engines.base import Files
from modelyard.runtime.entries import Entry
from waiting import until

SLOW = {"tokens_per_second": 20}


def kinds(change: dict[str, Any]) -> dict[str, str]:
    return {one["model"]: one["kind"] for one in change["models"]}


class TestModels:
    async def test_a_policy_touches_no_process(self) -> None:
        async with file_yard({"a": fake(), "b": fake()}) as yard:
            await yard.load("a")
            pids = yard.pids("a")
            changed = fake(keep_alive="7m", priority="high", max_wait="9s")
            answer = await yard.change({"a": changed, "b": fake()})
            assert answer.status == 200, answer.body
            assert answer.body["models"] == [
                {
                    "model": "a",
                    "kind": "policy",
                    "version": yard.yard.names.resolve("a").spec.version,
                    "fields": [
                        {"path": "priority", "before": "normal", "after": "high"},
                        {"path": "keep_alive", "before": 600.0, "after": 420.0},
                        {"path": "max_wait", "before": 20.0, "after": 9.0},
                    ],
                    "running": 0,
                }
            ]
            assert yard.pids("a") == pids
            entry = yard.yard.names.resolve("a")
            assert entry.policy.priority is Priority.HIGH
            assert yard.state.versions[entry.spec.version].policy == entry.policy
            assert yard.ready("a") is not None

    async def test_what_says_the_same_changes_nothing(self) -> None:
        async with file_yard({"a": fake()}) as yard:
            answer = await yard.apply()
            assert (answer.body["models"], answer.body["settings"]) == ([], [])

    async def test_one_that_comes_is_served_and_preloaded(self) -> None:
        async with file_yard({"a": fake()}) as yard:
            answer = await yard.change({"a": fake(), "b": fake(preload=True, aliases=["bee"])})
            assert kinds(answer.body) == {"b": "added"}
            await until(lambda: yard.ready("b"))
            assert (await yard.chat("bee")).text == right_text("b", "hi", 4)

    async def test_one_that_was_replaced_before_its_turn_is_preloaded(self) -> None:
        slow = fake(parameters={"load_time": 1.0})
        async with file_yard({"a": slow, "b": fake()}, preload=["a", "b"]) as yard:
            await until(lambda: yard.instances("a"))
            assert kinds((await yard.change({"a": slow, "b": fake(slots=2)})).body) == {"b": "replaced"}
            assert yard.ready("a") is None, "it was b's turn already"
            await until(lambda: yard.ready("b"))
            assert yard.instances("b")[0].version.spec.slots == 2

    async def test_one_that_goes_is_not_found_and_who_waits_for_it_is_told(self) -> None:
        async with file_yard({"a": fake(parameters={"load_time": 5.0}), "b": fake()}) as yard:
            waiting = asyncio.create_task(yard.chat("a"))
            await until(lambda: yard.waiting() == 1)
            assert kinds((await yard.change({"b": fake()})).body) == {"a": "removed"}
            answer = await waiting
            assert (answer.status, answer.code) == (404, "model_removed")
            assert (await yard.chat("a")).code == "model_not_found"

    async def test_another_version_of_an_idle_one_is_there_at_once(self) -> None:
        async with file_yard({"a": fake()}) as yard:
            old = (await yard.load("a")).version.key
            answer = await yard.change({"a": fake(slots=2)})
            assert kinds(answer.body) == {"a": "replaced"}
            await until(lambda: (one := yard.ready("a")) is not None and one.version.key != old)
            await until(lambda: old not in yard.state.versions)
            assert answer.body["models"][0]["version"] == yard.yard.names.resolve("a").spec.version
            assert (await yard.chat("a")).status == 200

    async def test_it_comes_when_the_old_one_has_left_where_both_do_not_fit(self) -> None:
        async with file_yard({"a": fake(8 * MB)}) as yard:
            await yard.load("a")
            async with yard.open_stream("a", tokens=8, fake=SLOW) as (stream, more):
                await anext(more)
                answer = await yard.change({"a": fake(7 * MB)})
                assert answer.body["models"][0]["running"] == 1
                assert [one.state.value for one in yard.instances("a")] == ["draining"]
                async for _ in more:
                    pass
            assert (stream.text, stream.done) == (right_text("a", "hi", 8), True)
            await until(lambda: yard.ready("a"))
            assert yard.reserved() == 7 * MB

    async def test_one_that_was_not_in_memory_is_not_loaded(self) -> None:
        async with file_yard({"a": fake()}) as yard:
            await yard.change({"a": fake(slots=2)})
            assert not yard.state.instances
            assert yard.state.sequence == 0

    async def test_who_waits_for_the_old_version_is_served_by_the_new_one_in_turn(self) -> None:
        slow = {"load_time": 30.0}
        async with file_yard({"a": fake(parameters=slow)}) as yard:
            chats = [asyncio.create_task(yard.chat("a", f"hi {number}")) for number in range(3)]
            await until(lambda: yard.waiting() == 3)
            streaming = asyncio.create_task(yard.stream("a", "stream"))
            await until(lambda: yard.waiting() == 4)
            await yard.change({"a": fake(aliases=["x"])})
            for number, chat in enumerate(chats):
                answer = await chat
                assert (answer.status, answer.text) == (200, right_text("a", f"hi {number}", 4))
                version = answer.headers["x-modelyard-version"]
                assert version == yard.yard.names.resolve("a").spec.version
            assert (await streaming).done
            request = answer.headers["x-modelyard-request"]
            story = (await yard.http.get(f"/admin/explain/{request}")).json()["story"]
            assert f"The version that it waited for is gone: a was replaced by {version}." in {
                line["text"] for line in story
            }
            order = [note.subject for _, note in yard.driver.notes.kept if note.kind == "ready"]
            assert order == ["a-2"]

    async def test_a_load_that_is_asked_for_goes_on_with_the_new_version(self) -> None:
        async with file_yard({"a": fake(parameters={"load_time": 30.0})}) as yard:
            asked = asyncio.create_task(yard.post("/admin/models/a/load"))
            await until(lambda: yard.instances("a"))
            await yard.change({"a": fake()})
            answer = await asked
            assert (answer.status, answer.body["instance"]) == (200, "a-2")
            assert answer.body["version"] == yard.yard.names.resolve("a").spec.version

    async def test_so_does_how_long_it_is_to_stay(self) -> None:
        async with file_yard({"a": fake(parameters={"load_time": 30.0})}) as yard:
            order = {"model": "a", "keep_alive": "1h", "stream": False}
            asked = asyncio.create_task(yard.post("/api/generate", order))
            await until(lambda: yard.instances("a"))
            await yard.change({"a": fake()})
            assert (await asked).status == 200
            assert yard.instances("a")[0].asked_keep_alive == 3600.0

    async def test_who_waits_for_a_new_version_that_lacks_the_path_is_told_so(self) -> None:
        async with file_yard({"a": fake(parameters={"load_time": 30.0})}) as yard:
            asked = asyncio.create_task(yard.chat("a"))
            await until(lambda: yard.waiting() == 1)
            answer = await yard.change({"a": fake(parameters={"apis": ["embeddings"]})})
            assert answer.status == 200, answer.body
            told = await asked
            assert (told.status, told.code) == (501, "not_supported")

    async def test_an_engine_profile_is_the_version_of_all_its_models(self) -> None:
        tuned = {"tuned": {"type": "fake", "environment": {"SEED": "1"}}}
        models = {"a": {**fake(), "engine": "tuned"}, "b": fake()}
        async with file_yard(models, engines=tuned) as yard:
            await yard.load("a")
            await yard.load("b")
            tuned["tuned"]["environment"] = {"SEED": "2"}
            answer = await yard.change(models, engines=tuned)
            (one,) = answer.body["models"]
            assert (one["model"], one["kind"]) == ("a", "replaced")
            assert one["fields"] == [{"path": "engine.environment.SEED", "before": "…", "after": "…"}]
            await until(lambda: yard.ready("a"))
            environ = Path(f"/proc/{yard.pids('a')[0]}/environ").read_bytes()
            assert b"SEED=2" in environ

    async def test_an_alias_moves(self) -> None:
        async with file_yard({"a": fake(aliases=["x"]), "b": fake()}) as yard:
            await yard.load("a")
            await yard.load("b")
            pids = yard.pids("a"), yard.pids("b")
            assert (await yard.chat("x")).text == right_text("a", "hi", 4)
            answer = await yard.change({"a": fake(), "b": fake(aliases=["x", "y"])})
            assert kinds(answer.body) == {"a": "policy", "b": "policy"}
            for name in "xy":
                assert (await yard.chat(name)).headers["x-modelyard-instance"] == "b-2"
            assert (yard.pids("a"), yard.pids("b")) == pids

    async def test_names_are_swapped_between_two_models(self) -> None:
        async with file_yard({"a": fake(aliases=["fast"]), "b": fake(aliases=["good"])}) as yard:
            await yard.change({"a": fake(aliases=["good"]), "b": fake(aliases=["fast"])})
            assert (await yard.chat("fast")).text == right_text("b", "hi", 4)
            assert (await yard.chat("good")).text == right_text("a", "hi", 4)

    async def test_back_to_the_version_that_is_still_leaving(self) -> None:
        async with file_yard({"a": fake()}) as yard:
            await yard.load("a")
            async with yard.open_stream("a", tokens=12, fake=SLOW) as (stream, more):
                await anext(more)
                await yard.change({"a": fake(slots=2)})
                await yard.change({"a": fake()})
                assert (await yard.chat("a")).status == 200
                async for _ in more:
                    pass
            assert stream.text == right_text("a", "hi", 12)
            await until(lambda: len(yard.state.versions) == 1)

    async def test_files_are_those_of_who_has_the_version_when_they_have_come(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with file_yard({"a": fake()}) as yard:
            first, come = yard.yard.names.resolve("a"), asyncio.Event()

            async def fetch(entry: Entry, progress: object) -> Files:
                await come.wait()
                return {}

            monkeypatch.setattr(yard.driver.files, "fetch", fetch)
            first.files = None
            fetching = asyncio.create_task(yard.driver.fetch(first, lambda _: None))
            await yard.change({"a": fake(slots=2)})
            await yard.change({"a": fake()})
            now = yard.yard.names.resolve("a")
            assert now is not first
            assert now.spec == first.spec
            now.files = None
            come.set()
            await fetching
            assert now.files == {}


class TestSettings:
    async def test_a_key_that_goes_stops_working_at_once(self) -> None:
        keys = [{"name": name, "key": f"{name}-secret", "scopes": ["inference", "admin"]} for name in "ab"]
        async with file_yard({"m": fake()}, keys=keys) as yard:
            yard.http.headers["authorization"] = "Bearer b-secret"
            assert (await yard.http.get("/v1/models")).status_code == 200
            yard.http.headers["authorization"] = "Bearer a-secret"
            answer = await yard.change({"m": fake()}, keys=keys[:1])
            (setting,) = answer.body["settings"]
            assert (setting["path"], setting["after"]) == ("keys.b", None)
            assert "secret" not in str(answer.body)
            assert (await yard.http.get("/v1/models")).status_code == 200
            yard.http.headers["authorization"] = "Bearer b-secret"
            assert (await yard.http.get("/v1/models")).status_code == 401

    async def test_who_follows_something_is_let_go_when_the_keys_change(self) -> None:
        keys = [{"name": name, "key": f"{name}-secret", "scopes": ["inference", "admin"]} for name in "ab"]
        async with file_yard({"m": fake()}, keys=keys) as yard:
            yard.http.headers["authorization"] = "Bearer b-secret"
            instance = await yard.load("m")
            paths = ("/admin/events", f"/admin/instances/{instance.id}/logs?follow=true")
            async with AsyncExitStack() as streams:
                followed = [
                    (await streams.enter_async_context(yard.http.stream("GET", path))).aiter_raw()
                    for path in paths
                ]
                for stream in followed:
                    await anext(stream)
                yard.http.headers["authorization"] = "Bearer a-secret"
                await yard.change({"m": fake(pin=True), "n": fake()}, keys=keys)
                await yard.load("n")
                async with asyncio.timeout(10):
                    await anext(followed[0])  # the keys are what they were
                await yard.change({"m": fake(), "n": fake()}, keys=keys[:1])
                for stream in followed:
                    async with asyncio.timeout(10):
                        async for _ in stream:
                            pass

    async def test_limits_and_bounds_of_the_server(self) -> None:
        async with file_yard({"a": fake(parameters={"load_time": 1.0})}) as yard:
            server = {"queue_bound": 1, "heartbeat_after": "1s", "limits": {"body": 200}}
            answer = await yard.change({"a": fake(parameters={"load_time": 1.0})}, server=server)
            assert {one["path"] for one in answer.body["settings"]} == {
                "server.queue_bound",
                "server.heartbeat_after",
                "server.limits.body",
            }
            first = asyncio.create_task(yard.chat("a"))
            await until(lambda: yard.waiting() == 1)
            assert (await yard.chat("a")).code == "queue_full"
            assert (await first).status == 200
            await yard.http.aclose()  # limits are those of a connection's beginning
            yard.http = type(yard)(yard.yard, yard.folder, {}).http
            assert (await yard.chat("a", "long" * 100)).code == "body_too_large"

    async def test_a_device_gets_more_memory(self) -> None:
        async with file_yard({"a": fake(), "b": fake()}, memory=5 * MB) as yard:
            await yard.load("a")
            assert (await yard.post("/admin/models/b/load", {"evict": False})).code == "no_memory"
            answer = await yard.change({"a": fake(), "b": fake()}, memory=10 * MB)
            assert [one["path"] for one in answer.body["settings"]] == ["devices.gpu0.memory"]
            await yard.load("b")
            assert yard.reserved() == 2 * SHARE
            # … and not less than what is held now
            refused = await yard.change({"a": fake(), "b": fake()}, memory=7 * MB)
            assert (refused.status, refused.code) == (400, "config_refused")
            assert "devices.gpu0.memory: would be 7000000 bytes (7.0 MB), less than" in refused.message
            assert yard.state.ledger.devices["gpu0"].device.budget == 10 * MB
            await yard.unload("b")
            assert (await yard.apply()).status == 200
            assert yard.state.ledger.devices["gpu0"].device.budget == 7 * MB


class TestOrders:
    async def test_a_dry_run_changes_nothing(self) -> None:
        async with file_yard({"a": fake()}) as yard:
            yard.write({"a": fake(slots=2), "b": fake()})
            answer = await yard.apply(dry_run=True)
            assert answer.body["applied"] is False
            assert kinds(answer.body) == {"a": "replaced", "b": "added"}
            assert [entry.spec.slots for entry in yard.yard.names.all()] == [1]
            assert len(yard.state.versions) == 1
            assert (await yard.apply()).body["applied"] is True
            assert [entry.spec.slots for entry in yard.yard.names.all()] == [2, 1]

    async def test_another_file_is_the_one_that_is_served_from_then_on(self) -> None:
        async with file_yard({"a": fake()}) as yard:
            other = yard.folder / "other.yaml"
            other.write_text(yard.text({"b": fake()}))
            answer = await yard.apply(other)
            assert (answer.body["source"], kinds(answer.body)) == (str(other), {"b": "added", "a": "removed"})
            status = (await yard.http.get("/admin/status")).json()
            assert status["config"]["source"] == str(other)
            other.write_text(yard.text({"c": fake()}))
            assert kinds((await yard.apply()).body) == {"c": "added", "b": "removed"}

    async def test_includes_and_relative_paths_count_from_the_file(self) -> None:
        async with file_yard({"a": fake()}) as yard:
            more = yard.folder / "conf.d"
            more.mkdir()
            (more / "b.yaml").write_text("models: {b: {engine: fake, parameters: {memory: {ram: 1000000}}}}")
            yard.write({"a": fake()}, include=["conf.d/*.yaml"])
            assert kinds((await yard.apply()).body) == {"b": "added"}

    async def test_two_at_once_are_made_one_after_the_other(self) -> None:
        async with file_yard({"a": fake()}) as yard:
            other = yard.folder / "other.yaml"
            other.write_text(yard.text({"a": fake(), "b": fake(), "c": fake()}))
            yard.write({"a": fake(), "b": fake()})
            first, second = await asyncio.gather(yard.apply(), yard.apply(other))
            assert kinds(first.body) == {"b": "added"}
            assert kinds(second.body) == {"c": "added"}, "it sees what the first one did"

    async def test_the_log_names_what_changed_and_no_value(self) -> None:
        async with file_yard({"a": fake(), "b": fake(), "c": fake()}) as yard:
            with capture_logs() as logs:
                await yard.change({"a": fake(slots=2), "b": fake(pin=True), "d": fake()})
            (line,) = (line for line in logs if line["event"] == "config.changed")
            assert {key: line[key] for key in ("added", "removed", "replaced", "policy")} == {
                "added": ["d"],
                "removed": ["c"],
                "replaced": ["a"],
                "policy": ["b"],
            }


class TestWatch:
    async def test_a_changed_file_is_taken(self) -> None:
        async with file_yard({"a": fake()}, watch=True) as yard:
            yard.write({"a": fake(), "b": fake()})
            await until(lambda: yard.knows(2))
            yard.write({"a": fake()})
            await until(lambda: yard.knows(1))

    async def test_so_is_an_included_one_and_one_that_a_pattern_finds(self) -> None:
        async with file_yard({"a": fake()}, watch=True, include=["more/*.yaml"]) as yard:
            more = yard.folder / "more"
            more.mkdir()
            for count, name in enumerate("bc", 2):
                (more / f"{name}.yaml").write_text(f"models: {{{name}: {{engine: fake}}}}")
                await until(partial(yard.knows, count))
            (more / "b.yaml").unlink()
            await until(lambda: [entry.spec.model for entry in yard.yard.names.all()] == ["a", "c"])

    async def test_an_order_reads_one_that_is_not_watched(self) -> None:
        async with file_yard({"a": fake()}) as yard:
            yard.write({"b": fake()})
            yard.yard.live._ordered.set()
            await until(lambda: yard.yard.names.all()[0].spec.model == "b")
