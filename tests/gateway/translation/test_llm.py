"""Translations by a language model that is told to: in parts, a few at a time, within one request's time, and
what it does wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.live_yard import SHARE, TWO, fake, live_yard
from gateway.translation.translators import ask, refused, translated, translator
from modelyard.gateway.translation.steps import AT_ONCE, TOGETHER, halves
from waiting import until

LLM = {"llm": {"model": "talk", "prompt": "To {target}:"}}
NARROW = {"context": 120}
WORD = "x" * 2000  # as long as it is, and one
MUTE = {"default_tokens": 0}


def talker(**fields: Any) -> dict[str, Any]:
    return fake(memory=SHARE, **fields)


async def test_a_text_too_long_for_it_goes_in_parts_and_keeps_its_lines() -> None:
    text = "\n\n".join("some words of a line. " * 24 for _ in range(4)).strip()
    async with live_yard({"talk": talker(parameters=NARROW)}, translation=LLM) as yard:
        said = await translated(yard, ["one", text], "en", "fi")
        short, long = said["translatedText"]
        assert len(short.split()) == 16  # as many as it says to whatever it is told
        assert len(long.split("\n\n")) == 4
        words = long.split()
        assert len(words) > 4 * 16
        assert len(words) % 16 == 0


@given(st.text(st.sampled_from("ab .!?\n。　"), max_size=300))
def test_halves_are_the_text(text: str) -> None:
    text = text.strip()
    if parts := halves(text):
        assert "".join(parts) == text
        before, between, after = parts
        assert not between.strip()
        assert all(one and one == one.strip() for one in (before, after))


async def test_a_text_that_cannot_be_cut_fails_alone_or_goes_to_the_next() -> None:
    models = {"talk": talker(parameters=NARROW), "kept": translator("en-fi")}
    async with live_yard({"talk": models["talk"]}, translation=LLM) as yard:
        assert refused(await ask(yard, ["one", WORD], "en", "fi"))[:2] == (400, "context_length_exceeded")
        said = await translated(yard, ["one", WORD, "three"], "en", "fi", partial=True)
        assert [text is None for text in said["translatedText"]] == [False, True, False]
        assert "120" in said["errors"]["1"]
    async with live_yard(models, translation={**LLM, "fallback": {"model": "kept"}}) as yard:
        said = await translated(yard, ["one", WORD], "en", "fi")
        assert said["translatedText"] == ["[fi] one", f"[fi] {WORD}"]
        assert said["route"] == "fallback"


async def test_an_answer_without_a_text_is_not_its_engines_fault() -> None:
    async with live_yard({"talk": talker(parameters=MUTE)}, translation=LLM) as yard:
        for _ in range(5):
            assert refused(await ask(yard, "one", "en", "fi"))[:2] == (502, "not_translated")
        said = await translated(yard, ["one", "two"], "en", "fi", partial=True)
        assert set(said["errors"]) == {"0", "1"}
        (talk,) = yard.instances("talk")
        assert talk.id == "talk-1"
        assert not talk.suspect
        assert talk.version.failures == 0
        assert not yard.notes("failed")
    models = {"talk": talker(parameters=MUTE), "kept": translator("en-fi")}
    async with live_yard(models, translation={**LLM, "fallback": {"model": "kept"}}) as yard:
        assert (await translated(yard, "one", "en", "fi"))["route"] == "fallback"


async def test_a_few_texts_go_at_a_time() -> None:
    model = talker(slots=9, parameters={"tokens_per_second": 100})
    async with live_yard({"talk": model}, translation=LLM) as yard:
        texts = [f"text {n}" for n in range(20)]
        asking = asyncio.create_task(ask(yard, texts, "en", "fi"))
        seen = set()

        def is_answered() -> bool:
            seen.add(yard.leases())
            return asking.done()

        await until(is_answered)
        answer = await asking
        assert len(set(answer.json()["translatedText"])) == 20
        assert max(seen) == AT_ONCE
        # Clients bound the headers of an answer: it names some of the requests.
        assert 1 < len(answer.headers.get_list("x-modelyard-request")) < 20


@pytest.mark.parametrize("fallback", [None, {"model": "kept"}, {"text": "(late)"}])
async def test_all_texts_together_have_the_time_of_one_request(fallback: dict[str, str] | None) -> None:
    slow = {"tokens_per_second": 40}  # 0.4 s each
    models = {"talk": talker(parameters=slow, request_timeout="1s"), "kept": translator("fr-de")}
    if fallback and "model" in fallback:
        models["kept"] = translator("en-fi")
    settings = {**LLM, "fallback": fallback} if fallback else LLM
    async with live_yard(models, memory=2 * TWO, translation=settings) as yard:
        begun = asyncio.get_running_loop().time()
        answer = await ask(yard, [f"text {n}" for n in range(20)], "en", "fi")
        assert asyncio.get_running_loop().time() - begun < 5.0
        if fallback and "text" in fallback:
            assert set(answer.json()["translatedText"]) == {"(late)"}
            return
        assert refused(answer)[:2] == (504, "request_deadline")
        assert "several requests" in answer.json()["error"]
        assert (await translated(yard, "one", "en", "fi"))["route"] == "llm"


async def test_all_parts_of_a_text_together_have_the_time_of_one_request() -> None:
    slow = {**NARROW, "tokens_per_second": 40}
    text = "\n\n".join("some words of a line. " * 24 for _ in range(20)).strip()
    async with live_yard({"talk": talker(parameters=slow, request_timeout="1s")}, translation=LLM) as yard:
        answer = await ask(yard, text, "en", "fi")
        assert refused(answer)[:2] == (504, "request_deadline")


async def test_batches_of_a_model_that_translates_have_the_time_of_one_request_too() -> None:
    slow = {"tokens_per_second": 1000}
    model = translator("en-fr", parameters=slow, request_timeout="1s")
    async with live_yard({"ef": model}, translation={"max_texts": 5000}) as yard:
        answer = await ask(yard, [f"some text number {n}" for n in range(4000)])
        assert refused(answer)[:2] == (504, "request_deadline")


async def test_a_client_that_leaves_takes_all_of_it_along() -> None:
    model = talker(slots=9, parameters={"tokens_per_second": 2})
    async with live_yard({"talk": model}, translation=LLM) as yard:
        await yard.load("talk")
        asking = asyncio.create_task(ask(yard, ["one", *(f"text {n} " * 9 for n in range(20))], "en", "fi"))
        await until(lambda: yard.leases() > 0)
        asking.cancel()
        await yard.settled()


async def test_a_client_that_leaves_takes_the_longest_along_when_those_after_it_have_ended() -> None:
    model = translator("en-fr", slots=9, parameters={"tokens_per_second": 1000})
    async with live_yard({"ef": model}, translation={"max_texts": 2000, "max_chars": 10**6}) as yard:
        texts = [*("first" for _ in range(TOGETHER)), *("long " * 20 for _ in range(TOGETHER)), "last " * 500]
        asking = asyncio.create_task(ask(yard, texts))
        await until(lambda: yard.leases() == 2)
        await until(lambda: yard.leases() == 1)
        asking.cancel()
        # The engine does not notice, so that its slot is not free before it has ended.
        (resident,) = yard.driver.commands.residents.values()
        await until(lambda: resident.endpoint and resident.endpoint.active == 0, 3.0)


async def test_one_that_cannot_be_asked_adds_no_languages() -> None:
    models = {"en-fr": translator("en-fr"), "vectors": fake(parameters={"apis": ["embeddings"]})}
    for name in ("nowhere", "vectors", "en-fr"):
        llm = {"llm": {"model": name}}
        async with live_yard(models, translation=llm) as yard:
            listed = {one["code"]: one["targets"] for one in (await yard.http.get("/languages")).json()}
            assert listed == {"en": ["fr"], "fr": []}
            assert refused(await ask(yard, "one", "en", "fi"))[:2] == (400, "unsupported_language")
