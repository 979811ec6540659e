"""The journal as operators read it: what happened to a request or a model, in order, and the export."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.live_yard import SHARE, LiveYard, fake, live_yard
from gateway.test_access import KEYS, USER, bearer
from gateway.test_clients import hold
from modelyard.gateway.explain import Selection, of_model, of_request
from modelyard.runtime.journal import Journal
from modelyard.runtime.journal_records import Kind
from waiting import until

ONE = SHARE + SHARE // 2  # room for one fake instance
REQUEST = "x-modelyard-request"


async def explained(yard: LiveYard, name: str) -> dict[str, Any]:
    response = await yard.http.get(f"/admin/explain/{name}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def story(yard: LiveYard, request: str) -> list[dict[str, Any]]:
    found = await explained(yard, request)
    assert (found["about"], found["id"], found["ended"]) == ("request", request, True)
    moments = [line["at"] for line in found["story"]]
    assert moments == sorted(moments)
    return list(found["story"])


def in_order(lines: Sequence[dict[str, Any]], *expected: tuple[str, str]) -> None:
    """These kinds, with these words, in this order (others may stand between them)."""
    rest = iter(lines)
    for kind, words in expected:
        assert any(line["kind"] == kind and words in line["text"] for line in rest), (
            f"no {kind} with {words!r} in its place: {[(line['kind'], line['text']) for line in lines]}"
        )


async def journal_lines(yard: LiveYard, query: str = "") -> list[dict[str, Any]]:
    response = await yard.http.get(f"/admin/journal{query}")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in response.text.splitlines()]


class TestRequests:
    async def test_a_swap_is_told_from_arrival_to_outcome(self) -> None:
        async with live_yard({"a": fake(), "b": fake()}, memory=ONE) as yard:
            await yard.chat("a")
            answer = await yard.chat("b")
            lines = await story(yard, answer.headers[REQUEST])
            in_order(
                lines,
                ("arrived", "arrived for b (chat, priority normal). No slot was free"),
                ("leave", "a-1 is the victim: makes room for b"),
                ("stop", "a-1 is stopped."),
                ("released", "The memory of a-1 is free again"),
                ("start", "b-2 was started on gpu0"),
                ("ready", "b-2 was ready after"),
                ("grant", "It was given a slot of b-2 after waiting"),
                ("end", "The request was answered (ok)"),
            )
            texts = [line["text"] for line in lines]
            assert "b waits for the memory of a-1" in texts[0]
            assert "Its score: idle, " in next(line["text"] for line in lines if line["kind"] == "leave")
            assert texts[-1].endswith("2 tokens in, 4 out.")
            assert lines[-1]["kind"] == "end", "what came later is no part of it"

    async def test_a_busy_victim_and_who_stays(self) -> None:
        models = {name: fake() for name in "abc"}
        async with live_yard(models, memory=2 * SHARE + SHARE // 2) as yard:
            await yard.load("a")
            await yard.load("b")
            running = asyncio.create_task(yard.chat("a", fake={"delay": 0.5}))
            await until(lambda: yard.leases() == 1)
            free = await hold(yard, "b")
            waiting = asyncio.create_task(yard.chat("c"))
            await until(lambda: any(one.leaving_for for one in yard.state.instances.values()))
            free()
            await running
            lines = await story(yard, (await waiting).headers[REQUEST])
            (leave,) = [line["text"] for line in lines if line["kind"] == "leave"]
            assert "1 running finish first" in leave
            assert "busy for normal" in leave
            assert "who stays: " in leave

    async def test_one_that_was_served_at_once(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            lines = await story(yard, (await yard.chat("a")).headers[REQUEST])
            assert [line["kind"] for line in lines] == ["arrived", "end"]
            assert lines[0]["text"] == "The request arrived for a (chat) and was given a slot of a-1 at once."

    async def test_one_that_was_refused_at_its_arrival(self) -> None:
        async with live_yard({"a": fake(queue_bound=1)}) as yard:
            await yard.load("a")
            free = await hold(yard)
            first = asyncio.create_task(yard.chat("a"))
            await until(lambda: yard.waiting() == 1)
            answer = await yard.chat("a")
            assert answer.status == 429
            lines = await story(yard, answer.headers[REQUEST])
            in_order(
                lines,
                ("arrived", "was refused at once (queue_full): 1 requests wait for a already"),
                ("end", "with the error queue_full"),
            )
            free()
            await first

    async def test_one_whose_engine_was_killed_is_tried_again(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            request = asyncio.create_task(yard.chat("a", fake={"delay": 1.0}))
            await until(lambda: yard.leases() == 1)
            os.kill(yard.pids("a")[0], signal.SIGKILL)
            answer = await request
            assert answer.status == 200
            in_order(
                await story(yard, answer.headers[REQUEST]),
                ("arrived", "was given a slot of a-1 at once"),
                ("attempt", "The attempt on a-1 failed"),
                ("arrived", "tried again, not on a-1"),
                ("start", "a-2 was started"),
                ("grant", "It was given a slot of a-2"),
                ("end", "in 2 attempts"),
            )

    async def test_one_that_was_refused_while_it_waited(self) -> None:
        async with live_yard({"a": fake(), "b": fake()}) as yard:
            instance = await yard.load("a")
            free = await hold(yard)
            request = asyncio.create_task(yard.chat("a"))
            await until(lambda: yard.waiting() == 1)
            yard.driver.remove(instance.version.key)
            answer = await request
            assert answer.code == "model_removed"
            in_order(
                await story(yard, answer.headers[REQUEST]),
                ("arrived", "No slot was free"),
                ("refuse", "refused while it waited (model_removed): a was removed"),
                ("end", "with the error model_removed"),
            )
            free()

    async def test_one_that_was_cut(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            request = asyncio.create_task(yard.chat("a", fake={"delay": 30.0}))
            await until(lambda: yard.leases() == 1)
            await yard.unload("a", now=True)
            in_order(
                await story(yard, (await request).headers[REQUEST]),
                ("arrived", "at once"),
                ("cut", "The answer of a-1 is cut (unloaded)"),
                ("attempt", "The attempt on a-1 failed (cut)"),
                ("end", "with the error unloaded"),
            )

    async def test_one_whose_client_left_while_it_waited(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            free = await hold(yard)
            request = asyncio.create_task(yard.chat("a"))
            await until(lambda: yard.waiting() == 1)
            (name,) = yard.state.waiting
            found = await explained(yard, name)
            assert not found["ended"]
            request.cancel()
            await until(lambda: yard.waiting() == 0)
            free()
            lines: list[dict[str, Any]] = []

            async def ended() -> bool:
                found = await explained(yard, name)
                lines[:] = found["story"]
                return bool(found["ended"])

            await until(ended)
            in_order(
                lines,
                ("arrived", "No slot was free"),
                ("cancel", "Its client left while it waited"),
                ("end", "its client left"),
            )

    async def test_others_are_no_part_of_it(self) -> None:
        async with live_yard({"a": fake(), "b": fake()}) as yard:
            await yard.load("a")
            free = await hold(yard)
            request = asyncio.create_task(yard.chat("a"))
            await until(lambda: yard.waiting() == 1)
            other = await yard.chat("b")
            free()
            lines = await story(yard, (await request).headers[REQUEST])
            assert [line["kind"] for line in lines] == ["arrived", "grant", "end"]
            assert other.headers[REQUEST] not in str(lines)

    async def test_a_start_that_was_under_way_belongs_to_it(self) -> None:
        async with live_yard({"a": fake(parameters={"load_time": 0.3})}) as yard:
            loading = asyncio.create_task(yard.load("a"))
            await until(lambda: yard.instances("a"))
            answer = await yard.chat("a")
            await loading
            lines = await story(yard, answer.headers[REQUEST])
            assert [line["kind"] for line in lines[:2]] == ["start", "arrived"]


class TestRuns:
    """Names of instances begin anew with each run; what a killed one left open is no part of the next."""

    def test_a_request_of_a_run_that_was_killed_ends_with_it(self) -> None:
        found = of_request([lines_of(*FIRST_RUN, *SECOND_RUN)], "r1")
        assert [record["kind"] for record in found.story] == ["arrived", "start", "opened"]

    def test_what_a_killed_run_had_under_way_is_forgotten(self) -> None:
        found = of_request([lines_of(*FIRST_RUN, *SECOND_RUN)], "r2")
        assert [record["kind"] for record in found.story] == ["arrived"]

    def test_what_a_file_of_the_ring_begins_with_is_no_part_of_any_story(self) -> None:
        snapshot = {"t": 2.5, "kind": "snapshot", "model": "a", "slots": 1}
        block = lines_of(
            {**snapshot, "t": 0.5}, *FIRST_RUN[:2], snapshot, FIRST_RUN[2], {**snapshot, "t": 9.0}
        )
        found = of_request([block], "r1")
        assert [record["kind"] for record in found.story] == ["arrived", "start"]
        assert (found.oldest, found.newest) == (1.0, 3.0)
        assert [record["kind"] for record in of_model([block], "a").story] == ["start"]

    def test_others_of_its_model_and_what_comes_after_its_grant_are_no_part_of_it(self) -> None:
        granted = {"t": 4.0, "kind": "grant", "model": "a", "instance": "a-1", "request": "r1"}
        later = (
            {"t": 2.5, "request": "r3", **QUEUED},
            {**granted, "request": "r3", "instance": "a-0"},
            granted,
            {"t": 4.1, "kind": "start", "model": "a", "instance": "a-2"},
            {"t": 4.2, "kind": "failed", "model": "a", "instance": "a-1", "reason": "crashed"},
            {"t": 4.3, "kind": "end", "model": "a", "request": "r1"},
            {"t": 4.4, "kind": "start", "model": "a", "instance": "a-3"},
        )
        found = of_request([lines_of(*FIRST_RUN, *later)], "r1")
        assert [record["t"] for record in found.story] == [2.0, 3.0, 4.0, 4.2, 4.3]

    def test_torn_lines_are_passed_over(self) -> None:
        torn = [lines_of(*FIRST_RUN)[:-30] + b"\n", b'{"t":1.0}\n', b"[]\n", lines_of(*SECOND_RUN)]
        assert [record["t"] for record in of_request(torn, "r2").story] == [6.0]
        assert b"".join(Selection(limit=1).lines(torn)) == lines_of(SECOND_RUN[-1])


QUEUED = {"kind": "arrived", "model": "a", "decision": "queued"}
FIRST_RUN = (
    {"t": 1.0, "kind": "opened"},
    {"t": 2.0, "request": "r1", **QUEUED},
    {"t": 3.0, "kind": "start", "model": "a", "instance": "a-1"},
)
SECOND_RUN = ({"t": 5.0, "kind": "opened"}, {"t": 6.0, "request": "r2", **QUEUED})


def lines_of(*records: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(one, separators=(",", ":")).encode() + b"\n" for one in records)


class TestIds:
    async def test_every_answer_of_a_model_has_one(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            good = await yard.chat("a")
            stream = await yard.stream("a")
            unknown = await yard.chat("nobody")
            broken = await yard.post("/v1/chat/completions", {"model": "a", "stream": "maybe"})
            names = [one.headers[REQUEST] for one in (good, stream, unknown, broken)]
            assert len(set(names)) == 4
            lines = await story(yard, unknown.headers[REQUEST])
            assert [line["kind"] for line in lines] == ["turned_away"]
            assert "model_not_found" in lines[0]["text"]

    async def test_strangers_get_none(self) -> None:
        async with live_yard({"a": fake()}, keys=KEYS) as yard:
            answer = await yard.chat("a")
            assert answer.status == 401
            assert REQUEST not in answer.headers

    async def test_one_that_is_unknown(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            for name in ("r00000000-7", "aa"):
                response = await yard.http.get(f"/admin/explain/{name}")
                assert response.status_code == 404
                message = response.json()["error"]["message"]
                assert name in message
                assert "which goes from 20" in message
            assert "Did you mean 'a'?" in message


class TestModels:
    async def test_a_model_s_loads_and_leaves(self) -> None:
        async with live_yard({"a": fake(aliases=["first"]), "b": fake()}, memory=ONE) as yard:
            await yard.chat("a")
            await yard.chat("b")
            await yard.chat("nobody")
            found = await explained(yard, "first")
            assert (found["about"], found["model"]) == ("model", "a")
            assert found["requests"] == {"ok": 1}
            in_order(
                found["story"],
                ("model_added", "a was added"),
                ("start", "a-1 was started"),
                ("ready", "a-1 was ready"),
                ("leave", "a-1 is the victim: makes room for b"),
                ("released", "The memory of a-1 is free again"),
            )
            assert "b-2" not in str(found["story"])


class TestExport:
    async def test_filters(self) -> None:
        async with live_yard({"a": fake(), "b": fake(aliases=["second"])}, memory=ONE) as yard:
            first = await yard.chat("a")
            await yard.chat("b")
            everything = await journal_lines(yard)
            assert everything[0]["kind"] == "opened"
            assert {one["kind"] for one in everything} >= {"arrived", "leave", "start", "grant", "end"}
            assert await journal_lines(yard, "?limit=3") == everything[-3:]
            request = first.headers[REQUEST]
            mine = await journal_lines(yard, f"?request={request}")
            assert [one["kind"] for one in mine] == ["arrived", "grant", "end"]
            swaps = await journal_lines(yard, "?model=b&kind=leave&kind=start")
            assert [(one["kind"], one["model"]) for one in swaps] == [("leave", "a"), ("start", "b")]
            assert await journal_lines(yard, "?model=second&kind=start") == swaps[1:]
            middle = everything[len(everything) // 2]["t"]
            later = await journal_lines(yard, f"?since={middle}")
            assert later == [one for one in everything if one["t"] >= middle]
            assert (await yard.http.get("/admin/journal?kind=nothing")).status_code == 400

    async def test_neither_prompts_nor_keys_nor_bodies_are_kept(self) -> None:
        secret, prompt = "key-9f2c7be1", "prompt-51ab77"
        keys = [{"name": "me", "key": secret, "scopes": ["inference", "admin"]}]
        async with live_yard({"a": fake()}, keys=keys) as yard:
            yard.http.headers.update(bearer(secret))
            answer = await yard.chat("a", prompt)
            stream = await yard.stream("a", prompt)
            failed = await yard.chat("a", prompt, fake={"status": 500})
            nobody = await yard.chat(prompt, prompt)
            odd = await yard.post(f"/v1/{prompt}", {"prompt": prompt})
            assert [one.status for one in (answer, stream, nobody, odd)] == [200, 200, 404, 404]
            assert failed.status >= 500
            assert len(await journal_lines(yard)) > 10
            text = b"".join(file.read_bytes() for file in folder_of(yard).iterdir()).decode()
        for word in (secret, prompt, answer.text, stream.text):
            assert word
            assert word not in text

    async def test_a_disk_that_takes_nothing_is_said_and_serving_goes_on(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            assert (await yard.http.get("/health")).json() == {"status": "ok"}
            await journal_lines(yard)
            folder = folder_of(yard)
            aside = folder.with_name("aside")
            folder.rename(aside)
            for file in aside.iterdir():
                file.unlink()
            folder.write_text("in the way")
            answer = await yard.chat("a")
            assert answer.status == 200
            lines = await story(yard, answer.headers[REQUEST])
            assert lines[-1]["kind"] == "end", "what is not on disk is told from memory"
            health = (await yard.http.get("/health")).json()
            assert health["status"] == "degraded"
            assert health["journal"]["problem"]
            folder.unlink()
            await until(lambda: not journal_of(yard).problem)
            assert (await yard.http.get("/health")).json() == {"status": "ok"}
            assert Kind.END in {one["kind"] for one in await journal_lines(yard)}

    async def test_one_that_is_off(self) -> None:
        async with live_yard({"a": fake()}, journal={"enabled": False}) as yard:
            answer = await yard.chat("a")
            assert REQUEST in answer.headers
            for path in ("/admin/journal", f"/admin/explain/{answer.headers[REQUEST]}"):
                response = await yard.http.get(path)
                assert response.status_code == 404
                assert "enabled: false" in response.json()["error"]["message"]

    async def test_needs_the_scope_admin(self) -> None:
        async with live_yard({"a": fake()}, keys=KEYS) as yard:
            for path in ("/admin/journal", "/admin/explain/a"):
                assert (await yard.http.get(path)).status_code == 401
                asked = await yard.http.get(path, headers=bearer(USER))
                assert asked.status_code == 403


def journal_of(yard: LiveYard) -> Journal:
    journal = yard.driver.journal
    assert journal is not None
    return journal


def folder_of(yard: LiveYard) -> Path:
    return yard.yard.config.server.data_dir / "journal"
