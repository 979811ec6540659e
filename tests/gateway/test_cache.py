"""`/admin/cache`: what is here, what goes, and what is not what it was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway.live_yard import LiveYard, fake, live_yard
from modelyard.engines.fake import FakeEngine
from modelyard.store import Store, Terms
from store.byte_source import Bytes, weights
from store.test_changed_files import flip
from waiting import until

CONTENT = {name: weights(name) for name in ("a", "b", "c")}
DIGESTS = {name: sha256(content).hexdigest() for name, content in CONTENT.items()}
SIZE = len(CONTENT["a"])


@pytest_asyncio.fixture
async def yard(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LiveYard]:
    """`a` runs, `b` ran, `c` was fetched for nobody."""

    def opened(root: Path, *sources: Any, **settings: Any) -> Store:
        store = Store(root, *sources, **settings)
        store.serve(Bytes(CONTENT))
        return store

    monkeypatch.setattr(FakeEngine, "sources", lambda _, spec: {"model": spec.source})
    monkeypatch.setattr("modelyard.compose.yard.Store", opened)
    async with live_yard({name: fake(source=f"bytes://{name}") for name in ("a", "b")}) as yard:
        for name in ("b", "a"):
            await yard.load(name)
        await yard.unload("b")
        await yard.yard.store.fetch("bytes://c", Terms())
        yield yard


async def listed(yard: LiveYard) -> dict[str, Any]:
    answer = await yard.http.get("/admin/cache")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


async def test_what_is_listed(yard: LiveYard) -> None:
    found = await listed(yard)
    assert (found["bytes"], found["quota"], found["quarantined"]) == (3 * SIZE, None, 0)
    files = {file["sources"][0]: file for file in found["files"]}
    assert {name: file["digest"] for name, file in files.items()} == {
        f"bytes://{name}": digest for name, digest in DIGESTS.items()
    }
    assert [(file["models"], file["in_use"]) for _, file in sorted(files.items())] == [
        (["a"], True),
        (["b"], False),
        ([], False),
    ]
    assert all(
        (file["bytes"], file["in_cache"], file["kind"]) == (SIZE, True, "gguf") for file in files.values()
    )


async def test_what_is_in_use_stays_and_what_is_removed_is_fetched_again(yard: LiveYard) -> None:
    dry = await yard.post("/admin/cache/prune", {"all": True, "dry_run": True})
    assert (dry.status, dry.body["bytes"], dry.body["dry_run"]) == (200, 2 * SIZE, True)
    assert len((await listed(yard))["files"]) == 3
    done = await yard.post("/admin/cache/prune", {"all": True})
    assert {file["digest"] for file in done.body["removed"]} == {DIGESTS["b"], DIGESTS["c"]}
    assert [file["digest"] for file in (await listed(yard))["files"]] == [DIGESTS["a"]]
    named = await yard.post("/admin/cache/prune", {"files": ["a"]})
    assert [file["digest"] for file in named.body["in_use"]] == [DIGESTS["a"]]
    assert (await yard.chat("a")).status == 200
    assert (await yard.chat("b")).status == 200
    assert yard.notes("failed") == []


async def test_a_model_names_its_files_though_nobody_ever_used_them(yard: LiveYard) -> None:
    made = await yard.post("/v1/models", {"name": "model-c", **fake(source="bytes://c")})
    assert made.status == 201
    done = await yard.post("/admin/cache/prune", {"files": ["model-c"]})
    assert (done.status, [file["digest"] for file in done.body["removed"]]) == (200, [DIGESTS["c"]])


async def test_only_what_was_not_used_for_long_goes(yard: LiveYard) -> None:
    kept = await yard.post("/admin/cache/prune", {"older": 3600})
    assert (kept.status, kept.body["removed"]) == (200, [])


@pytest.mark.parametrize(
    ("order", "status", "code"),
    [
        ({}, 400, "invalid_request"),
        ({"all": True, "older": 5}, 400, "invalid_request"),
        ({"older": -1}, 400, "invalid_request"),
        ({"al": True}, 400, "invalid_request"),
        ({"files": ["x" * 5000]}, 400, "invalid_request"),
        ({"files": ["nobody"]}, 404, "not_found"),
        ({"files": ["a", "/etc/passwd"]}, 404, "not_found"),
    ],
)
async def test_an_order_that_names_nothing_is_refused(
    yard: LiveYard, order: dict[str, Any], status: int, code: str
) -> None:
    answer = await yard.post("/admin/cache/prune", order)
    assert (answer.status, answer.code) == (status, code)
    assert len((await listed(yard))["files"]) == 3


async def test_verification_sets_aside_what_changed_and_says_both_digests(yard: LiveYard) -> None:
    store = yard.yard.store
    blob = Path(store.shelf.matching([DIGESTS["b"]])[DIGESTS["b"]][0].path)
    flip(blob)
    done = await yard.post("/admin/cache/verify?wait=true")
    assert (done.status, done.body["bad"]) == (200, 1)
    problems = {file["digest"]: file["problem"] for file in done.body["files"]}
    assert problems[DIGESTS["a"]] == problems[DIGESTS["c"]] == ""
    assert DIGESTS["b"] in problems[DIGESTS["b"]]
    assert (await listed(yard))["quarantined"] == SIZE
    assert not blob.exists()
    assert (await yard.chat("b")).status == 200
    assert (await yard.post("/admin/cache/prune", {"all": True})).body["bytes"] >= SIZE
    assert (await listed(yard))["quarantined"] == 0


async def test_verification_is_a_task(yard: LiveYard) -> None:
    begun = await yard.post("/admin/cache/verify", {"rate": 1024})
    assert begun.status == 202
    task = begun.body["id"]
    assert (await yard.post(f"/v1/tasks/{task}/cancel")).status in {200, 202}

    async def ended() -> bool:
        return bool((await yard.http.get(f"/v1/tasks/{task}")).json()["state"] == "cancelled")

    await until(ended)
    assert (await yard.post("/admin/cache/verify", {"rate": 1})).status == 400
