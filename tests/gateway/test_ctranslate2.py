"""Translations by real processes of CTranslate2 behind a server: small models with random weights, which
always translate into the same nonsense.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.live_yard import LiveYard, live_yard
from modelyard.core.languages import Pairs
from servers.translation import random_models
from waiting import until

pytest.importorskip("ctranslate2")

TRAINED = Path(__file__).parents[2] / "examples" / "translation" / "models" / "en-fr"
TAG = re.compile(r"<[^<>]*>")
CLIENTS = 16
EACH = 6  # requests


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("models")
    many, one = random_models.m2m100(root / "many"), random_models.marian(root / "one")
    return {"many": model(many), "one": model(one, policy={"quality": 1})}


def model(folder: Path, policy: Mapping[str, object] | None = None, **parameters: object) -> dict[str, Any]:
    small = {"max_batch_tokens": 256, "threads": 1, "max_output": 16, **parameters}
    return {
        "engine": "ctranslate2",
        "source": str(folder),
        "devices": ["ram"],
        "slots": 32,
        "parameters": small,
        **(policy or {}),
    }


async def translated(yard: LiveYard, text: str, pair: str, **more: object) -> dict[str, Any]:
    answer = await yard.post("/translate", {"q": text, "pair": pair, **more})
    assert answer.status == 200, answer.body
    return dict(answer.body)


async def test_what_the_files_say_decides_who_translates(models: dict[str, Any]) -> None:
    async with live_yard(models) as yard:
        first = await translated(yard, "the red house", "en-fr")
        assert first["model"] == "many" or first["model"] == "one"
        by_name = await translated(yard, "the red house", "en-fr", model="one")
        assert by_name["model"] == "one"
        assert (await translated(yard, "the red house", "de-es"))["model"] == "many"
        refused = await yard.post("/translate", {"q": "a", "pair": "de-fr", "model": "one"})
        assert refused.status == 400
        entries = {
            version.spec.model: yard.driver.entries[key] for key, version in yard.state.versions.items()
        }
        pairs = {name: entry.engine.pairs(entry.spec, entry.files or {}) for name, entry in entries.items()}
        assert pairs["one"] == Pairs(frozenset({("en", "fr")}))
        assert ("zh", "de") in pairs["many"]
        # Both are files that the store made of the folders, and lie there once.
        made = {entry.files["model"].path for entry in entries.values() if entry.files}
        assert {path.parent.name for path in made} == {"sha256"}
        await yard.unload("many", now=True)
        assert (await translated(yard, "the red house", "de-es"))["model"] == "many"
        assert {entry.files["model"].path for entry in entries.values() if entry.files} == made


async def test_what_many_ask_goes_through_the_model_together(models: dict[str, Any]) -> None:
    spec = model(Path(models["many"]["source"]), max_wait_ms=100)
    async with live_yard({"many": spec}) as yard:
        alone = await translated(yard, "two old dogs", "en-fr")
        together = await asyncio.gather(*(translated(yard, "two old dogs", "en-fr") for _ in range(20)))
        assert {answer["translatedText"] for answer in together} == {alone["translatedText"]}
        instance = yard.ready("many")
        assert instance is not None
        endpoint = yard.driver.commands.residents[instance.id].endpoint
        assert endpoint is not None
        _, body = await endpoint.pool.fetch("GET", "/stats", timeout=5.0)
        counts = json.loads(body)
        assert counts["segments"] >= 21
        assert counts["batches"] <= 2 + 20 // 2


async def test_what_the_model_never_takes_in_one_request_is_refused_with_the_limit(
    models: dict[str, Any],
) -> None:
    async with live_yard({"one": models["one"]}, translation={"max_chars": 1_000_000}) as yard:
        answer = await yard.http.post("/translate", json={"q": "a\n" * 100_001, "pair": "en-fr"})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), answer.text
        assert "100,000 are the most in one request" in answer.json()["error"]
        assert "retry-after" not in answer.headers


async def test_marks_go_around_what_became_of_their_words() -> None:
    """By a model that was trained to translate."""
    async with live_yard({"en-fr": model(TRAINED, max_output=200)}) as yard:
        for html, right in (
            ("<p>252 <b>very red</b> dogs</p>", "<p>252 chiens <b>très rouges</b></p>"),
            (
                "<li>The black <i>horse</i> is in <a href='/x?a&amp;b'>the city.</a></li>",
                "<li>Le <i>cheval</i> noir est dans <a href='/x?a&amp;b'>la ville.</a></li>",
            ),
            ("It is a quarter to <b>five.</b>", "Il est <b>cinq</b> heures moins le quart."),
            # No model says what became of `is`: then each text stands for itself, with its marks.
            ("Today <b>is</b> Tuesday", None),
        ):
            said = (await translated(yard, html, "en-fr", format="html"))["translatedText"]
            assert TAG.findall(said) == TAG.findall(right or html)
            if right is not None:
                assert said == right
                plain = (await translated(yard, TAG.sub("", right and html), "en-fr"))["translatedText"]
                assert TAG.sub("", said) == plain


async def test_kill_9_of_the_process_under_load_leaves_nobody_without_an_answer(
    models: dict[str, Any],
) -> None:
    texts = ["the red house", "two old dogs", "a small tree likes the green cat", "the cat is old"]
    async with live_yard({"many": models["many"]}) as yard:
        right = {text: (await translated(yard, text, "en-fr"))["translatedText"] for text in texts}
        answered = 0

        async def client(number: int) -> None:
            nonlocal answered
            for turn in range(EACH):
                text = texts[(number + turn) % len(texts)]
                assert (await translated(yard, text, "en-fr"))["translatedText"] == right[text]
                answered += 1

        killed = set()
        async with asyncio.TaskGroup() as load:
            for number in range(CLIENTS):
                load.create_task(client(number))
            for share in (0.2, 0.6):
                await until(lambda share=share: answered >= share * CLIENTS * EACH)  # type: ignore[misc]
                await until(lambda: yard.pids("many"))
                killed.add(pid := yard.pids("many")[0])
                os.kill(pid, signal.SIGKILL)
        assert answered == CLIENTS * EACH
        assert len(killed) == 2
