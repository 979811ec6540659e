"""Which models a translation goes over, and what happens when one of them cannot: with processes."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from dataclasses import replace

import pytest

from gateway.live_yard import SHARE, TWO, LiveYard, fake, live_yard
from gateway.translation.translators import ask, refused, translated, translator
from modelyard.config import Config
from modelyard.gateway.translation import lane
from modelyard.gateway.translation.markup import pieces_of
from modelyard.gateway.translation.pieces import Glossary, Pieces
from modelyard.servers.fake_text import chat_prompt, expected_text
from waiting import until

BROKEN = {"exit_code": 1, "exit_log": "error: failed to load model: torn"}


def loads(yard: LiveYard) -> list[str]:
    """Which models were loaded, in order."""
    return [note.subject.rpartition("-")[0] for _, note in yard.driver.notes.kept if note.kind == "ready"]


async def test_another_pair_swaps_the_models_where_there_is_room_for_one() -> None:
    models = {"ef": translator("en-fr"), "fd": translator("fr-de")}
    async with live_yard(models, memory=SHARE + 1_000_000) as yard:
        assert (await translated(yard, "one"))["translatedText"] == "[fr] one"
        assert (await translated(yard, "un", "fr", "de"))["translatedText"] == "[de] un"
        assert (await translated(yard, "two"))["translatedText"] == "[fr] two"
        assert loads(yard) == ["ef", "fd", "ef"]


async def test_two_steps_only_where_that_is_allowed() -> None:
    models = {"ef": translator("en-fr"), "fd": translator("fr-de")}
    async with live_yard(models) as yard:
        assert refused(await ask(yard, "one", "en", "de"))[:2] == (400, "unsupported_language")
    async with live_yard(models, translation={"pivot": ["fr"]}) as yard:
        said = await translated(yard, ["one", "two"], "en", "de", alternatives=1)
        assert said["translatedText"] == ["[de] [fr] one", "[de] [fr] two"]
        assert said["alternatives"] == [["[de] [fr] one (2)"], ["[de] [fr] two (2)"]]
        assert (said["route"], said["pivot"], said["model"]) == ("pivot", "fr", "ef > fd")
        assert said["usage"]["segments"] == 4
        assert refused(await ask(yard, "one", "en", "de", pivot=False))[:2] == (400, "unsupported_language")
        for pivot in ("fr", "FR_be"):
            assert (await translated(yard, "one", "en", "de", pivot=pivot))["pivot"] == "fr"
        assert refused(await ask(yard, "one", "en", "de", pivot="es"))[:2] == (400, "unsupported_language")
        assert refused(await ask(yard, "one", pivot="fr"))[:2] == (400, "unsupported_language")
        listed = {one["code"]: one["targets"] for one in (await yard.http.get("/languages")).json()}
        assert listed["en"] == ["de", "fr"]
        partly = await translated(yard, ["BAD", "two"], "en", "de", partial=True)
        assert partly["translatedText"] == [None, "[de] [fr] two"]


async def test_a_language_model_is_told_to_translate_what_no_other_can() -> None:
    settings = {"llm": {"model": "talk", "prompt": "To {target} from {source}:"}}
    models = {"ef": translator("en-fr"), "talk": fake(memory=SHARE)}
    async with live_yard(models, translation=settings) as yard:
        said = await translated(yard, ["one", "two"], "en", "fi")
        right = [
            expected_text("talk", prompt_of("To Finnish from English:", text), 16).strip()
            for text in ("one", "two")
        ]
        assert said["translatedText"] == right
        assert (said["route"], said["model"]) == ("llm", "talk")
        assert said["usage"]["output_tokens"] == 32
        assert (await translated(yard, "one"))["route"] == "direct"
        assert (await translated(yard, "one", model="talk"))["route"] == "llm"


def prompt_of(told: str, text: str) -> str:
    return chat_prompt([{"role": "system", "content": told}, {"role": "user", "content": text}])


async def test_what_cannot_be_loaded_gives_way_to_the_next() -> None:
    models = {
        "good": translator("en-fr", quality=2, parameters=BROKEN),
        "other": translator("en-fr", quality=1),
    }
    async with live_yard(models) as yard:
        said = await translated(yard, "one")
        assert (said["translatedText"], said["model"]) == ("[fr] one", "other")


async def test_a_model_and_a_text_are_kept_for_when_none_can() -> None:
    models = {"ef": translator("en-fr", parameters=BROKEN), "kept": translator("en-fr")}
    async with live_yard(models, translation={"fallback": {"model": "kept"}}) as yard:
        said = await translated(yard, "one")
        assert (said["translatedText"], said["model"], said["route"]) == ("[fr] one", "kept", "fallback")
    texts = {"fallback": {"text": "(not translated)"}}
    async with live_yard({"ef": models["ef"]}, translation=texts) as yard:
        said = await translated(yard, ["one", "<b>two</b>", ""], format="html")
        assert said["translatedText"] == ["(not translated)", "(not translated)", ""]
        assert (said["route"], said["model"]) == (["fixed", "fixed", None], None)
    async with live_yard({"ef": models["ef"]}) as yard:
        assert refused(await ask(yard, "one"))[:2] == (503, "cannot_load")


async def test_recent_translations_are_kept_where_that_is_configured() -> None:
    async with live_yard({"ef": translator("en-fr")}, translation={"cache": "1MB"}) as yard:
        first = await translated(yard, ["one", "two"])
        again = await translated(yard, ["two", "three", "one"])
        assert again["translatedText"] == ["[fr] two", "[fr] three", "[fr] one"]
        assert (first["usage"]["segments"], again["usage"]["segments"]) == (2, 1)
        assert (await translated(yard, "one"))["usage"]["segments"] == 0
        assert (await translated(yard, "one", alternatives=1))["usage"]["segments"] == 1
    async with live_yard({"ef": translator("en-fr")}) as yard:
        for _ in range(2):
            assert (await translated(yard, "one"))["usage"]["segments"] == 1


async def test_what_is_kept_is_not_used_for_another_prompt() -> None:
    settings = {"llm": {"model": "talk", "prompt": "To {target}:"}, "cache": "1MB"}
    async with live_yard({"talk": fake(memory=SHARE)}, translation=settings) as yard:
        first = [(await translated(yard, "one", "en", "fi"))["usage"]["output_tokens"] for _ in range(2)]
        assert first == [16, 0]

        def with_prompt(now: Config) -> Config:
            return replace(now, translation=replace(now.translation, prompt="In {target}, please:"))

        await yard.yard.live.change(with_prompt)
        said = await translated(yard, "one", "en", "fi")
        right = expected_text("talk", prompt_of("In Finnish, please:", "one"), 16).strip()
        assert said["translatedText"] == right


async def test_a_client_that_leaves_takes_its_request_along() -> None:
    slow = {"tokens_per_second": 2}
    async with live_yard({"ef": translator("en-fr", parameters=slow)}) as yard:
        await yard.load("ef")
        asking = asyncio.create_task(ask(yard, "one two three four five six seven eight nine ten"))
        await until(yard.leases)
        asking.cancel()
        await yard.settled()


async def test_an_engine_that_is_killed_is_started_again() -> None:
    slow = {"tokens_per_second": 5}
    async with live_yard({"ef": translator("en-fr", parameters=slow)}, memory=TWO) as yard:
        await yard.load("ef")
        asking = asyncio.create_task(translated(yard, "one two three four five"))
        await until(yard.leases)
        os.kill(yard.pids("ef")[0], signal.SIGKILL)
        assert (await asking)["translatedText"] == "[fr] one two three four five"
        assert loads(yard) == ["ef", "ef"]


async def test_an_engine_that_hangs_is_told_of() -> None:
    hanging = {"hang_on_request": 2}
    models = {"ef": translator("en-fr", parameters=hanging, request_timeout="1s")}
    async with live_yard(models) as yard:
        assert refused(await ask(yard, "one"))[:2] == (504, "request_deadline")


async def test_a_list_longer_than_an_engine_is_given_at_once() -> None:
    async with live_yard({"ef": translator("en-fr")}, translation={"max_texts": 1000}) as yard:
        texts = [f"text {n}" for n in range(600)]
        said = await translated(yard, texts)
        assert said["translatedText"] == [f"[fr] {text}" for text in texts]
        assert said["usage"]["segments"] == 600


async def test_long_texts_are_cut_beside_the_answers_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def cut(text: str, glossary: Glossary, *, html: bool) -> Pieces:
        threads.append(threading.current_thread())
        return pieces_of(text, glossary, html=html)

    monkeypatch.setattr(lane, "pieces_of", cut)
    async with live_yard({"ef": translator("en-fr")}) as yard:
        await translated(yard, "<p>some words</p>" * 300, format="html")
        await translated(yard, "some words", glossary={f"{n} {'x' * 90}": "y" for n in range(100)})
    assert len(threads) == 2
    assert threading.main_thread() not in threads
