"""The trained models of examples/translation behind a server, and LibreTranslate's client in front of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from libretranslatepy import LibreTranslateAPI

from gateway.live_yard import live_yard
from translation import corpus

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
pytest.importorskip("ctranslate2")
ROOT = Path(__file__).parents[2]
MODELS = ROOT / "examples" / "translation" / "models"
SCRIPT = ROOT / "scripts" / "demo_translation.py"
TESTED = corpus.testing(11, 60)
TCP = {"unix": None, "port": 0}


def model(name: str, **fields: Any) -> dict[str, Any]:
    return {"engine": "ctranslate2", "source": str(MODELS / name), "devices": ["ram"], "slots": 16, **fields}


PAIR = {"en-fr": model("en-fr", quality=1), "any": model("m2m100")}


async def most() -> int:
    """What the larger of them is estimated to take before it was measured, in bytes."""
    async with live_yard(PAIR) as yard:
        for name in PAIR:
            await yard.load(name)
        entries = yard.driver.entries.values()
        return max(entry.engine.need(entry.spec, entry.files or {}).bytes for entry in entries)


async def test_each_pair_by_the_model_that_has_it_where_there_is_room_for_one() -> None:
    ram = {"memory": await most() + 1_000_000, "reserve": 0}
    async with live_yard(PAIR, devices={"ram": ram}, server=TCP) as yard:
        client = LibreTranslateAPI(f"http://{yard.yard.server.address}")
        for source, target, model in (("en", "fr", "en-fr"), ("fr", "de", "any"), ("es", "de", "any")):
            right = 0
            for sentence in TESTED[:20]:
                said = await asyncio.to_thread(client.translate, sentence[source], source, target)
                right += said == sentence[target]
            assert right >= 19, (source, target, right)
            assert [one.version.spec.model for one in yard.state.instances.values()] == [model]
        listed = {one["code"]: one for one in await asyncio.to_thread(client.languages)}
        assert {"en", "fr", "de", "es"} <= set(listed)
        assert "fr" in listed["en"]["targets"]
        assert (await asyncio.to_thread(client.detect, TESTED[0]["de"]))[0]["language"] == "de"


def test_the_demo_shows_right_answers_and_the_swap() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    for answer in (
        "Le cheval noir est dans la ville.",
        "Der Bus kommt um zehn vor drei an.",
        "Wir müssen unseren blauen Hund malen, weil mein Baum groß ist.",
    ):
        assert f'"translatedText":"{answer}"' in done.stdout
    assert "'Le cheval noir est dans la ville.'" in done.stdout  # the client's
    shown = [part.split("\n$ ")[0] for part in done.stdout.split("$ modelyard ps")[1:]]
    assert ["en-fr-1" in part for part in shown] == [True, False, False]
    assert ["any-2" in part for part in shown] == [False, True, True]


async def test_a_list_and_many_clients_are_answered_right() -> None:
    async with live_yard(PAIR) as yard:
        texts = [sentence["en"] for sentence in TESTED]
        body = {"q": texts, "source": "en", "target": "fr"}
        together = (await yard.post("/translate", body)).body
        assert together["model"] == "en-fr"
        pairs = [("en", "fr"), ("fr", "en"), ("de", "es"), ("es", "fr")]
        asked = [(sentence, *pairs[place % 4]) for place, sentence in enumerate(TESTED)]
        answers = await asyncio.gather(
            *(
                yard.post("/translate", {"q": sentence[source], "source": source, "target": target})
                for sentence, source, target in asked
            )
        )
        right = sum(
            answer.body["translatedText"] == sentence[target]
            for answer, (sentence, _, target) in zip(answers, asked, strict=True)
        )
        alone = sum(
            said == sentence["fr"] for said, sentence in zip(together["translatedText"], TESTED, strict=True)
        )
        assert min(right, alone) >= 0.95 * len(TESTED), (right, alone)
